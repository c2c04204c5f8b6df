"""Raw files -> interactions. Unreadable rows are counted and written to the quarantine; too many stop the build."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import EPOCH_UNITS, DatasetSettings
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import file_size
from spark_jobs.clean import (
    HEADER_AGAIN,
    INTERACTION,
    accepted,
    rejected,
    timestamp_range,
    timestamp_unit,
    typed_rows,
    unreadable,
)
from spark_jobs.quantile import BUCKETS, Bucket, bucket_of
from spark_jobs.sources import RawFile, read_rows
from spark_jobs.stage_log import StageLog
from spark_jobs.writer import write_no_quarantine, write_quarantine

EXAMPLES = 5
Example = tuple[str, str, str]
"""(file, row, reason) of a row that could not be read."""


@dataclass(frozen=True)
class Readable:
    """The result of reading: interactions, and the quarantine."""

    interactions: DataFrame
    """the good rows after equal ones collapsed, all rows of a user in one partition; persisted"""
    rows: int
    """number of good rows, before equal ones collapsed"""
    unit: str
    """unit of the timestamps"""
    times: list[Bucket]
    """counts of all timestamps, in order"""
    quarantine: list[FileEntry]
    examples: list[Example]
    """the first rows that could not be read"""


class Reader:
    """Reads the files of one build."""

    def __init__(self, spark: SparkSession, settings: DatasetSettings, files: Sequence[RawFile], log: StageLog) -> None:
        self.spark, self.settings, self.files, self.log = spark, settings, list(files), log

    def read(self, partitions: int, building: Location) -> Readable:
        """Reads and cleans; writes the quarantine into `building`.

        Raises InputError if too many rows cannot be read, or if no row can.
        """
        source = self.settings.source
        self.log.say("reading", f"{len(self.files):,} files, {file_size(sum(f.bytes for f in self.files))}")
        if source.time_format not in (*EPOCH_UNITS, "iso"):
            _require_pattern(self.spark, source.time_format)
        rows = read_rows(self.spark, self.files, source)
        unit = timestamp_unit(rows, source)
        typed = typed_rows(rows, self.settings)
        quarantined = Observation()
        seen = typed.select(*INTERACTION, "position", "reason").observe(quarantined, F.count("reason").alias("rows"))
        interactions = accepted(seen, partitions).persist(StorageLevel.DISK_ONLY)
        place = bucket_of("timestamp", *timestamp_range(self.settings.clean, unit), BUCKETS)
        ends = (F.min("timestamp").alias("low"), F.max("timestamp").alias("high"))
        counted = interactions.groupBy(place).agg(*ends, F.count("*").alias("count"), F.sum("copies").alias("copies"))
        found = sorted(counted.collect(), key=lambda row: row["low"])
        times = [Bucket(row["low"], row["high"], row["count"]) for row in found]
        kept, good = (sum(row[name] for row in found) for name in ("count", "copies"))
        entries, examples = self.quarantine(typed, quarantined.get["rows"], good, building)
        if good == 0:
            others = f" (and {len(self.files) - 1:,} more files)" if len(self.files) > 1 else ""
            way_out = "check RAW (--raw) and `source` in the YAML"
            raise InputError(f"no row of {self.files[0].location}{others} could be read as an interaction; {way_out}")
        self.log.done("deduplicated", rows=good - kept)
        return Readable(interactions, good, unit, times, entries, examples)

    def quarantine(
        self, typed: DataFrame, with_reason: int, good: int, building: Location
    ) -> tuple[list[FileEntry], list[Example]]:
        """Counts and writes the rows that could not be read; parses again only if there are any.

        with_reason: the number of these rows and of the files' own headers.
        """
        source = self.settings.source
        own_headers = len(self.files) if source.format == "csv" and source.header else 0
        reasons: dict[str, int] = {}
        bad_rows = unreadable(typed).persist(StorageLevel.DISK_ONLY)
        if with_reason != own_headers:
            reasons = {row["reason"]: row["count"] for row in bad_rows.groupBy("reason").count().collect()}
            reasons[HEADER_AGAIN] = reasons.get(HEADER_AGAIN, 0) - own_headers
            assert reasons[HEADER_AGAIN] >= 0, reasons
        reasons = {reason: count for reason, count in sorted(reasons.items()) if count}
        bad = sum(reasons.values())
        self.log.done("read", rows=good + bad)
        self.log.done("quarantined", rows=bad, **reasons)
        if not bad:
            return [write_no_quarantine(building)], []
        quarantine = rejected(bad_rows, self.files)
        first = quarantine.orderBy("position").limit(EXAMPLES).collect()
        examples = [(row["source_file"], row["row"], row["reason"]) for row in first]
        self.require_readable(good + bad, reasons, examples)
        entries = write_quarantine(quarantine, building, bad)
        bad_rows.unpersist()
        return entries, examples

    def require_readable(self, read: int, reasons: dict[str, int], examples: Sequence[Example]) -> None:
        """Raises InputError with the first unreadable rows if their share exceeds max_quarantine_share."""
        share, bad = self.settings.clean.max_quarantine_share, sum(reasons.values())
        if bad / read <= share:
            return
        commonest = sorted(reasons.items(), key=lambda pair: -pair[1])[:3]
        common = ", ".join(f"{count:,} because {reason}" for reason, count in commonest)
        file, row, reason = examples[0]
        first = f"first in {file}: {row[:200]!r} ({reason})"
        others = "; ".join(f"{row[:80]!r} ({reason})" for _, row, reason in examples[1:3])
        way_out = f"correct them, or leave them out with --clean.max-quarantine-share {_round_up(bad / read)}"
        if bad == read:
            way_out = "no row can be read: check `source` in the YAML (separator, header, columns, time_format)"
        raise InputError(
            f"{bad:,} of {read:,} rows ({bad / read:.2%}, allowed are {share:.2%}) could not be read: {common}; "
            f"{first}{'; then ' + others if others else ''}; {way_out}"
        )


def _require_pattern(spark: SparkSession, pattern: str) -> None:
    """Raises InputError for a time pattern that Spark cannot read."""
    try:
        spark.range(1).select(F.try_to_timestamp(F.lit("2020-01-01"), F.lit(pattern))).collect()
    except PySparkException as error:
        example = "example: yyyy-MM-dd HH:mm:ss"
        raise InputError(f"source.time_format {pattern!r} is not a pattern that Spark can read; {example}") from error


def _round_up(share: float) -> float:
    """The next of 0.001, 0.01, 0.1, ... at or above a share, below 1."""
    return next((s for s in (0.001, 0.01, 0.1, 0.5, 0.9) if s >= share), 0.99)
