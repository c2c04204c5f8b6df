"""Shards and manifest: built in a sibling directory, swapped in whole."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from pyspark.sql import DataFrame

from pnfrec_dist.errors import InputError
from pnfrec_dist.schema import (
    ITEMS_NAME,
    FileEntry,
    Manifest,
    read_manifest,
    sha256_of,
    verify_files,
    write_manifest,
)

USERS_PER_SHARD = 50_000


def write_users(rows: DataFrame, directory: Path, users: int) -> list[FileEntry]:
    """Writes one row per user as directory/part-NNNNN.parquet, the same files for the same rows.

    Users are spread over shards by a hash of user_id and sorted by it within each.
    """
    shards = max(1, -(-users // USERS_PER_SHARD))
    rows = rows.repartition(shards, "user_id").sortWithinPartitions("user_id")
    return write_parts(rows, directory)


def write_parts(rows: DataFrame, directory: Path) -> list[FileEntry]:
    """Writes rows as they are partitioned and gives the files stable names."""
    rows.write.parquet(str(directory.resolve()))
    for number, file in enumerate(sorted(directory.glob("part-*.parquet"))):
        file.rename(directory / f"part-{number:05d}.parquet")
    _remove_spark_leftovers(directory)
    return [_entry(f, directory.parent) for f in sorted(directory.iterdir())]


def write_items(items: DataFrame, directory: Path) -> FileEntry:
    """Writes the catalog as the single file items.parquet."""
    scratch = directory / "items"
    items.coalesce(1).sortWithinPartitions("item_id").write.parquet(str(scratch.resolve()))
    (part,) = scratch.glob("part-*.parquet")
    part.rename(directory / ITEMS_NAME)
    shutil.rmtree(scratch)
    return _entry(directory / ITEMS_NAME, directory)


def _remove_spark_leftovers(directory: Path) -> None:
    for file in directory.iterdir():
        if file.suffix != ".parquet" or file.name.startswith("."):
            file.unlink()


def _entry(file: Path, root: Path) -> FileEntry:
    return FileEntry(
        path=file.relative_to(root).as_posix(),
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        rows=pq.read_metadata(file).num_rows,
    )


@contextlib.contextmanager
def build_directory(final: Path) -> Iterator[Path]:
    """A sibling of `final` to build in. It is gone after an error; publish() moves it to `final`."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for stale in final.parent.glob(f".{final.name}.building-*"):
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
        _sync(path)
    old = final.parent / f".{final.name}.old-{os.getpid()}"
    if final.exists():
        final.rename(old)
    building.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole_manifest(final: Path) -> Manifest | None:
    """The manifest of a data set whose files all match it, or None."""
    try:
        manifest = read_manifest(final)
        verify_files(final, manifest)
    except InputError:
        return None
    return manifest
