"""Writes the shards, on the executors. So it imports only what they have: pyarrow, pyspark and this project."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pnfrec_dist.data.schema import ITEMS_NAME, ITEMS_SCHEMA, QUARANTINE, QUARANTINE_SCHEMA, FileEntry
from pnfrec_dist.files.atomic import replaced
from pnfrec_dist.files.locations import Location

ENTRY = "path string, bytes bigint, sha256 string, rows bigint"
ROWS_PER_QUARANTINE_SHARD = 1_000_000


def shard_count(entries: int, users: int, num_items: int, shard_mb: int) -> int:
    """The number of shards of about shard_mb MB, computed from counts only, so that it is the same in every build.

    entries: ids in all lists together. An id compresses to about log2(num_items) bits, the rest of a user to 20 bytes.
    """
    size = entries * math.log2(num_items + 1) / 8 + users * 20
    return max(1, round(size / (shard_mb << 20)))


def write_users(
    rows: DataFrame, directory: Location, schema: pa.Schema, shards: int, group: int | None = None
) -> list[FileEntry]:
    """Writes one row per user as directory/part-NNNNN.parquet, the same bytes for the same rows.

    A hash of user_id selects the shard of a user; within a shard, users are sorted by user_id. group: largest number of
    users in a row group.
    """
    rows = rows.repartition(shards, "user_id").sortWithinPartitions("user_id")
    return write_parts(rows, directory, schema, group=group)


def write_quarantine(rejected: DataFrame, directory: Location, rows: int) -> list[FileEntry]:
    """Writes the rejected rows in the order of the source, spread over shards by a hash of their position."""
    shards = -(-rows // ROWS_PER_QUARANTINE_SHARD)
    placed = rejected.repartition(shards, F.col("position")).sortWithinPartitions("position")
    return write_parts(placed, directory / QUARANTINE, QUARANTINE_SCHEMA)


def write_no_quarantine(directory: Location) -> FileEntry:
    """Writes an empty quarantine, without Spark."""
    quarantine = directory / QUARANTINE
    quarantine.make_directory()
    return write_file([], quarantine / _part(0), QUARANTINE_SCHEMA)


def write_items(items: DataFrame, directory: Location) -> FileEntry:
    """Writes the catalog as the single file items.parquet."""
    (entry,) = write_parts(items.coalesce(1).sortWithinPartitions("item_id"), directory, ITEMS_SCHEMA, name=ITEMS_NAME)
    return dataclasses.replace(entry, path=ITEMS_NAME)


def write_parts(
    rows: DataFrame, directory: Location, schema: pa.Schema, *, name: str = "", group: int | None = None
) -> list[FileEntry]:
    """Writes each partition as one Parquet file (name, or part-NNNNN.parquet); executors must reach `directory`.

    The executors write with pyarrow: Spark's own writer orders a set in the footer by object identity, so that its
    bytes differ from run to run. The executors also compute the checksums.
    """
    directory.make_directory()

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        file = directory / (name or _part(context.partitionId()))
        entry = write_file(batches, file, schema, context.taskAttemptId(), group)
        yield pa.RecordBatch.from_pylist([dataclasses.asdict(entry)])

    written = rows.select(*schema.names).mapInArrow(write, ENTRY).collect()
    entries = [FileEntry(e.path, e.bytes, e.sha256, e.rows) for e in written]
    return sorted(entries, key=lambda entry: entry.path)


def write_file(
    batches: Iterable[pa.RecordBatch],
    file: Location,
    schema: pa.Schema,
    writer: object = "writing",
    group: int | None = None,
) -> FileEntry:
    """Writes one Parquet file. A local file is a draft until it is whole; object stores show only whole files.

    writer: as in files.atomic.replaced; group: largest number of rows in a row group.
    """
    rows = 0
    with (
        _whole(file, writer) as place,
        place.filesystem.open_output_stream(place.fs_path) as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as parquet,
    ):
        for batch in batches:
            parquet.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=group)
            rows += batch.num_rows
    return FileEntry(f"{file.parent.name}/{file.name}", file.size(), file.sha256(), rows)


@contextmanager
def _whole(file: Location, writer: object) -> Iterator[Location]:
    """The location to write to: a local file gets a draft, which becomes `file` at the end."""
    if not file.is_local:
        yield file
        return
    with replaced(file.path, writer) as draft:
        yield Location(draft)


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"
