"""Rows that a build has read, kept beside its data set, so that a later one reads new files alone (--append).

.<name>.kept/kept.json              settings, buckets, and the batches: files, unit of timestamps, counts
.<name>.kept/rows/batch=000000/     the good rows of the files that one build has read, as Spark's bucketed Parquet: a
                                    bucket holds all rows of its users, so that nothing is shuffled by user again
.<name>.kept/rejected/000000/       its rows that could not be read
.<name>.kept/titles                 the file with the items' titles, as it was last seen
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import writing
from pnfrec_dist.files.locations import Location, reading
from pnfrec_dist.files.locks import held
from spark_jobs.raw_files import RawFile
from spark_jobs.row_counts import RowCounts
from spark_jobs.sources import FILE_SHIFT
from spark_jobs.times import TICKS

KEPT_JSON, ROWS, REJECTED, TITLES = "kept.json", "rows", "rejected", "titles"
VERSION = 1
AGAIN = "build the data set from all files again, with --keep-rows"
"""The way out if kept rows cannot be used."""
READ_WITH = ("source", "clean", "feedback")
"""Sections of the settings on which the kept rows depend."""
TABLE, BATCH_TABLE = "pnfrec_kept", "pnfrec_batch"


@dataclass(frozen=True)
class Batch:
    """The files that one build has read."""

    files: list[FileEntry]
    """in the order of their numbers in position"""
    unit: str
    """of the timestamps"""
    counts: RowCounts
    parquet: dict[str, int]
    """path -> size of its kept files"""


@dataclass(frozen=True)
class Kept:
    """The content of kept.json."""

    settings: dict[str, Any]
    """the sections READ_WITH"""
    buckets: int
    headers: list[str]
    """the first lines of files with a header, and the types of Parquet columns: new files must have the same"""
    batches: list[Batch] = field(default_factory=list)
    version: int = VERSION

    @property
    def files(self) -> list[FileEntry]:
        return [file for batch in self.batches for file in batch.files]

    @property
    def counts(self) -> RowCounts:
        return functools.reduce(RowCounts.plus, (batch.counts for batch in self.batches))

    @property
    def unit(self) -> str:
        """The finest unit of all batches."""
        return max((batch.unit for batch in self.batches), key=lambda unit: TICKS.get(unit, 0))


def read_settings(settings: DatasetSettings) -> dict[str, Any]:
    """The sections READ_WITH of the settings."""
    prepared = settings.prepared()
    return {name: prepared[name] for name in READ_WITH}


class KeptRows:
    """The rows kept beside the data set `final`."""

    def __init__(self, final: Location) -> None:
        self.final, self.directory = final, final.parent / f".{final.name}.kept"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the kept rows of a local data set. Raises InputError if another command uses them."""
        if not self.directory.is_local:
            yield
            return
        with writing(f"below {self.final.parent}", "choose another --data-dir"):
            self.final.parent.make_directory()
            lock = held(self.directory.path.with_suffix(".lock"), remove=True)
        with lock as is_ours:
            if not is_ours:
                raise InputError(f"another command adds to {self.final}; wait for it")
            yield

    def read(self) -> Kept | None:
        """None if there are no kept rows. Raises InputError if they are damaged."""
        file = self.directory / KEPT_JSON
        if not file.is_file():
            return None
        with reading(file, AGAIN):
            content = json.loads(file.read_bytes())
            if content["version"] != VERSION:
                raise InputError(f"{file} is of another version; {AGAIN}")
            for batch in content["batches"]:
                batch["files"] = [FileEntry(**entry) for entry in batch["files"]]
                batch["counts"] = RowCounts(**batch["counts"])
            content["batches"] = [Batch(**batch) for batch in content["batches"]]
            kept = Kept(**content)
        self._require_whole(kept)
        return kept

    def _require_whole(self, kept: Kept) -> None:
        sizes = self.directory.files()
        for batch in kept.batches:
            for path, size in batch.parquet.items():
                if sizes.get(path) != size:
                    raise InputError(f"{self.directory / path} is missing or damaged; {AGAIN}")

    def write(self, kept: Kept) -> None:
        """Writes kept.json, which makes its batches count. Deletes what is in none of them."""
        content = json.dumps(dataclasses.asdict(kept), indent=1) + "\n"
        draft = self.directory / f"{KEPT_JSON}.writing"
        draft.write_bytes(content.encode())
        if self.directory.renames:
            draft.sync()
            draft.rename(self.directory / KEPT_JSON)
        else:
            draft.copy_file(self.directory / KEPT_JSON)
            draft.delete()
        self.delete_all_but(len(kept.batches))

    def delete_all_but(self, batches: int) -> None:
        """Deletes what killed builds left behind the first batches."""
        for part, name in ((ROWS, _batch), (REJECTED, _number)):
            wanted = {name(number) for number in range(batches)}
            for found in (self.directory / part).entries(recursive=False):
                if found not in wanted:
                    (self.directory / part / found).delete()

    def delete(self) -> None:
        self.directory.delete()

    def write_rows(self, rows: DataFrame, number: int, buckets: int) -> None:
        """Writes the good rows of a batch, whose users must be together in `buckets` partitions."""
        place = self.directory / ROWS / _batch(number)
        place.delete()
        spark = rows.sparkSession
        spark.sql(f"DROP TABLE IF EXISTS {BATCH_TABLE}")
        by_user = rows.write.bucketBy(buckets, "raw_user_id").option("path", _spark_path(place))
        by_user.format("parquet").saveAsTable(BATCH_TABLE)
        spark.sql(f"DROP TABLE {BATCH_TABLE}")

    def write_rejected(self, rejected: DataFrame | None, number: int) -> None:
        place = self.directory / REJECTED / _number(number)
        place.delete()
        if rejected is not None:
            rejected.write.parquet(_spark_path(place))

    def written(self, number: int) -> dict[str, int]:
        """Path -> size of the files of a batch."""
        places = (f"{ROWS}/{_batch(number)}", f"{REJECTED}/{_number(number)}")
        sizes = {f"{place}/{name}": size for place in places for name, size in (self.directory / place).files().items()}
        return {path: size for path, size in sizes.items() if path.endswith(".parquet")}

    def rows(self, spark: SparkSession, kept: Kept, order: Sequence[RawFile]) -> DataFrame:
        """The good rows of all batches, all rows of a user in one partition. order: all files, in order."""
        first = spark.read.parquet(_spark_path(self.directory / ROWS / _batch(0)))
        columns = ", ".join(f"{column.name} {column.dataType.simpleString()}" for column in first.schema.fields)
        where = _spark_path(self.directory / ROWS).replace("\\", "\\\\").replace("'", "\\'")
        spark.sql(f"DROP TABLE IF EXISTS {TABLE}")
        spark.sql(
            f"CREATE TABLE {TABLE} ({columns}, batch int) USING parquet PARTITIONED BY (batch) "
            f"CLUSTERED BY (raw_user_id) INTO {kept.buckets} BUCKETS LOCATION '{where}'"
        )
        for number in range(len(kept.batches)):
            place = f"{where}/{_batch(number)}"
            spark.sql(f"ALTER TABLE {TABLE} ADD PARTITION (batch={number}) LOCATION '{place}'")
        placed = _renumbered(spark.table(TABLE), kept, order)
        factor = F.get(F.array(*[F.lit(_factor(batch.unit, kept.unit)) for batch in kept.batches]), F.col("batch"))
        return placed.withColumn("timestamp", F.col("timestamp") * factor.cast("bigint")).drop("batch")

    def rejected(self, spark: SparkSession, kept: Kept, order: Sequence[RawFile]) -> DataFrame | None:
        """The rows of all batches that could not be read; None if there are none."""
        parts = [
            spark.read.parquet(_spark_path(self.directory / REJECTED / _number(number))).withColumn(
                "batch", F.lit(number)
            )
            for number, batch in enumerate(kept.batches)
            if batch.counts.reasons
        ]
        if not parts:
            return None
        return _renumbered(functools.reduce(DataFrame.unionByName, parts), kept, order).drop("batch")


def _renumbered(rows: DataFrame, kept: Kept, order: Sequence[RawFile]) -> DataFrame:
    """The rows with the positions that they have among all files."""
    place = {file.name: number for number, file in enumerate(order)}
    numbers = [[place[file.path] for file in batch.files] for batch in kept.batches]
    if numbers == [list(range(len(numbers[0])))]:
        return rows
    table = F.array(*[F.array(*[F.lit(number).cast("bigint") for number in of_batch]) for of_batch in numbers])
    own = F.shiftright("position", FILE_SHIFT).cast("int")
    number = F.get(F.get(table, F.col("batch")), own)
    in_file = F.col("position").bitwiseAND(F.lit((1 << FILE_SHIFT) - 1))
    return rows.withColumn("position", F.shiftleft(number, FILE_SHIFT) + in_file)


def _factor(unit: str, finest: str) -> int:
    return 1 if unit == finest else TICKS[finest] // TICKS[unit]


def _number(batch: int) -> str:
    return f"{batch:06d}"


def _batch(batch: int) -> str:
    return f"batch={_number(batch)}"


def _spark_path(location: Location) -> str:
    return f"file://{location.uri}" if location.is_local else location.uri
