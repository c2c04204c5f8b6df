"""Reads new files alone, and takes the rows of the others from those that were kept (--keep-rows, --append)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.source_settings import SourceSettings, TitlesSettings
from pnfrec_dist.data.schema import FileEntry, settings_hash
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.content_hash import has_sha256
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import counted
from spark_jobs.clean import without_zeros
from spark_jobs.kept_rows import AGAIN, TITLES, Batch, Kept, KeptRows, read_settings
from spark_jobs.parquet_rows import parquet_types
from spark_jobs.publish import whole_manifest
from spark_jobs.raw_files import RawFile, describe_sources, find_raw, first_lines, in_order
from spark_jobs.reading import Readable, Reader, Rejected
from spark_jobs.repeats import good_rows, interactions_of
from spark_jobs.sources import check_files
from spark_jobs.stage_log import StageLog
from spark_jobs.times import TICKS, timestamp_unit


class AppendingReader(Reader):
    """Reads the new files, keeps their rows, and gives the rows of all files. files: the new ones."""

    def __init__(
        self, spark: SparkSession, settings: DatasetSettings, files: Sequence[RawFile], log: StageLog, place: KeptRows
    ) -> None:
        super().__init__(spark, settings, files, log)
        self.place, self.kept = place, place.read()

    @property
    def titles(self) -> Location:
        return self.place.directory / TITLES

    def read(self, partitions: int, building: Location) -> Readable:
        """As Reader.read, for all files. The new rows count as soon as kept.json names them: when all can be read."""
        before = self.kept or Kept(read_settings(self.settings), partitions, self.shape())
        kept = self.keep(before) if self.files else before
        self.files = all_files(self.files, kept, self.settings.source.sort_files)
        rows = self.place.rows(self.spark, kept, self.files)
        rules = len(self.settings.feedback.undone)
        interactions = interactions_of(rows, rules).persist(StorageLevel.DISK_ONLY)
        respelled = self.one_spelling(interactions, kept.counts)
        if respelled:
            interactions.unpersist()
            spelled = rows.withColumns({name: without_zeros(F.col(name)) for name in respelled})
            placed = spelled.repartition(kept.buckets, "raw_user_id")
            interactions = interactions_of(placed, rules).persist(StorageLevel.DISK_ONLY)
        times = self.count_times(interactions, kept.unit)
        rejected = Rejected(self.place.rejected(self.spark, kept, self.files), building)
        found = self.readable(interactions, times, kept.unit, kept.counts, rejected)
        if kept is not before:
            self.place.write(kept)
        return found

    def keep(self, before: Kept) -> Kept:
        """Reads the new files and writes their rows as a batch."""
        number, files = len(before.batches), describe_sources(self.files)
        rows = self.opened(is_first=not before.batches)
        units = [timestamp_unit(rows, self.settings.reading()), *([before.unit] if before.batches else [])]
        parsed = self.parsed(rows, max(units, key=lambda unit: TICKS.get(unit, 0)), before.buckets)
        counts, rejected = self.counted(parsed)
        rules = self.settings.feedback.undone
        good = good_rows(parsed.typed, before.buckets, with_rules=True) if rules else parsed.interactions
        self.place.write_rows(good, number, before.buckets)
        self.place.write_rejected(rejected, number)
        parsed.interactions.unpersist()
        self.keep_titles()
        self.log.say("kept", f"the rows of {counted(len(files), 'file')}")
        batch = Batch(files, parsed.unit, counts, self.place.written(number))
        return dataclasses.replace(before, batches=[*before.batches, batch])

    def keep_titles(self) -> None:
        """Copies the file of the titles, if it is there."""
        found = super().titles
        if self.settings.titles.file and found.is_file():
            self.place.directory.make_directory()
            (self.place.directory / TITLES).write_bytes(found.read_bytes())

    def shape(self) -> list[str]:
        return shape_of(self.files, self.settings)


def shape_of(files: Sequence[RawFile], settings: DatasetSettings) -> list[str]:
    """The first lines of files with a header, or the types of the columns of Parquet files."""
    source = settings.reading()
    if source.format == "parquet":
        return [f"{name} {kind}" for name, kind in parquet_types(files, source).items()]
    return sorted(set(first_lines(files, source.encoding))) if source.format == "csv" and source.header else []


def all_files(new: Sequence[RawFile], kept: Kept, sort_files: str) -> list[RawFile]:
    """All files in order; the kept ones need not be there any more."""
    found = {file.name: file for file in new}
    for entry in kept.files:
        found.setdefault(entry.path, RawFile(entry.path, Location(entry.path), entry.bytes))
    return in_order(sorted(found.values(), key=lambda file: file.name), sort_files)


def new_files(given: Sequence[RawFile], kept: Kept) -> list[RawFile]:
    """Those of the files that are not kept yet. Raises InputError for one that has changed."""
    known = {entry.path: entry for entry in kept.files}
    for file in given:
        if file.name in known and not _is_same(file, known[file.name]):
            raise InputError(
                f"{file.location} has changed since it was read; give new rows in files of other names, or build the "
                "data set from all files again, with --keep-rows"
            )
    return [file for file in given if file.name not in known]


def _is_same(file: RawFile, entry: FileEntry) -> bool:
    return file.bytes == entry.bytes and has_sha256(file.location, entry.sha256)


@dataclass(frozen=True)
class ToRead:
    """What a build reads."""

    files: list[RawFile]
    """raw files that it reads now"""
    sources: list[FileEntry]
    """all raw files of the data set, by name"""
    buckets: int = 0
    """of the kept rows; 0: there are none"""


@dataclass(frozen=True)
class RawDirectory:
    """Where new files are; see find_raw."""

    raw: str
    source: SourceSettings
    titles: TitlesSettings


def appended(name: str, settings: DatasetSettings, append: str, place: KeptRows) -> ToRead | None:
    """The new files of --append; None if the data set has all of them already, which is said.

    Raises InputError if there are no kept rows, a file has changed, or new rows cannot be added to the kept ones.
    """
    given = find_raw(name, RawDirectory(append, settings.source, settings.titles))
    kept = place.read()
    if kept is None:
        raise InputError(f"there are no kept rows at {place.directory}; build once from all files with --keep-rows")
    new = new_files(given, kept)
    if kept.settings != read_settings(settings):
        differ = sorted(part for part in kept.settings if kept.settings[part] != read_settings(settings)[part])
        raise InputError(f"the rows were kept with other settings of {', '.join(differ)}; {AGAIN}")
    if new:
        check_files(new, settings.reading())
        if other := sorted(set(shape_of(new, settings)) - set(kept.headers)):
            raise InputError(f"{new[0].location} has other columns than the kept files ({other[0]!r}); {AGAIN}")
    sources = sorted([*kept.files, *describe_sources(new)], key=lambda entry: entry.path)
    manifest = whole_manifest(place.final)
    has_all = not new and manifest is not None and manifest.sources == sources
    if has_all and manifest is not None and manifest.settings_hash == settings_hash(settings.prepared()):
        print(f"{place.final} has all files of {append} already")
        return None
    return ToRead(new, sources, kept.buckets)
