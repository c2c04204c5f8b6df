"""Shards and manifest: built in a sibling directory, swapped in whole."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from pnfrec_dist.errors import InputError
from pnfrec_dist.schema import (
    ITEMS_NAME,
    ITEMS_SCHEMA,
    FileEntry,
    Manifest,
    read_manifest,
    sha256_of,
    sync_to_disk,
    verify_files,
    write_manifest,
)

USERS_PER_SHARD = 50_000
ENTRY = "path string, bytes bigint, sha256 string, rows bigint"


def write_users(rows: DataFrame, directory: Path, schema: pa.Schema, users: int) -> list[FileEntry]:
    """Writes one row per user as directory/part-NNNNN.parquet, the same bytes for the same rows.

    Users are spread over shards by a hash of user_id and sorted by it within each.
    """
    shards = max(1, -(-users // USERS_PER_SHARD))
    rows = rows.repartition(shards, "user_id").sortWithinPartitions("user_id")
    return write_parts(rows, directory, schema)


def write_parts(rows: DataFrame, directory: Path, schema: pa.Schema) -> list[FileEntry]:
    """Writes each partition as one Parquet file; `directory` must be reachable from the executors.

    The executors write with pyarrow: Spark's own writer orders a set in the footer by object identity, so that its
    bytes differ from run to run. They also take the checksums.
    """
    directory.mkdir()
    target = str(directory.resolve())

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        path = Path(target) / f"part-{context.partitionId():05d}.parquet"
        draft = path.with_name(f".{path.name}.{context.taskAttemptId()}")
        count = 0
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
                count += batch.num_rows
        draft.replace(path)
        entry = {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path), "rows": count}
        yield pa.RecordBatch.from_pylist([entry])

    written = rows.select(*schema.names).mapInArrow(write, ENTRY).collect()
    return sorted((FileEntry(f"{directory.name}/{e.path}", e.bytes, e.sha256, e.rows) for e in written), key=_path)


def write_items(items: DataFrame, directory: Path) -> FileEntry:
    """Writes the catalog as the single file items.parquet."""
    scratch = directory / "items"
    (entry,) = write_parts(items.coalesce(1).sortWithinPartitions("item_id"), scratch, ITEMS_SCHEMA)
    (directory / entry.path).rename(directory / ITEMS_NAME)
    scratch.rmdir()
    return dataclasses.replace(entry, path=ITEMS_NAME)


def _path(entry: FileEntry) -> str:
    return entry.path


@contextlib.contextmanager
def build_directory(final: Path) -> Iterator[Path]:
    """A sibling of `final` to build in. It is gone after an error; publish() moves it to `final`."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for stale in [p for kind in ("building", "old") for p in final.parent.glob(f".{final.name}.{kind}-*")]:
            if not psutil.pid_exists(int(stale.name.rpartition("-")[2])):
                shutil.rmtree(stale)
        building = final.parent / f".{final.name}.building-{os.getpid()}"
        building.mkdir()
    except OSError as error:
        raise InputError(f"cannot write below {final.parent} ({error.strerror}); choose another --data-dir") from error
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def publish(building: Path, final: Path, manifest: Manifest) -> None:
    """Writes the manifest and _SUCCESS, syncs everything to disk, and puts `building` in the place of `final`."""
    write_manifest(building, manifest)
    for path in [*building.rglob("*"), building]:
        sync_to_disk(path)
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    if final.exists():
        final.rename(old)
    building.rename(final)
    sync_to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def whole_manifest(final: Path) -> Manifest | None:
    """The manifest of a data set whose files all match it, or None."""
    try:
        manifest = read_manifest(final)
        verify_files(final, manifest)
    except InputError:
        return None
    return manifest
