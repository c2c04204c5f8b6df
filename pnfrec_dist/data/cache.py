"""Ragged arrays in files that all workers of a node map into memory, so that a node holds them only once."""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.files.atomic import scratch_directory, writing
from pnfrec_dist.files.content_hash import UNUSED_DAYS, has_sha256, remove_unused_notes
from pnfrec_dist.files.locations import Location, sha256_of

FIELDS = ("offsets", "values")
CHECKSUMS, DRAFT = "checksums.json", ".draft-"


def mapped(directory: Path, make: Callable[[], dict[str, Ragged]]) -> dict[str, Ragged]:
    """The arrays of `directory`, memory-mapped. If they are missing or damaged, those of make() are written first.

    Several processes may ask at once: each writes its own draft, and the first one to rename it wins. The name of
    `directory` must contain all that the arrays depend on. Raises InputError if the directory cannot be written.
    """
    if not _is_whole(directory):
        arrays = make()
        with writing(f"to the cache {directory.parent}", "name another directory in PNFREC_CACHE"):
            _write(directory, arrays)
            _remove_unused(directory.parent)
    with contextlib.suppress(OSError):
        os.utime(directory)  # marks it as used
    names = sorted({file.name.split(".")[0] for file in directory.glob("*.npy")})
    return {
        name: Ragged(*(np.load(_file(directory, name, field), mmap_mode="r") for field in FIELDS)) for name in names
    }


def _file(directory: Path, name: str, field: str) -> Path:
    return directory / f"{name}.{field}.npy"


def _remove_unused(cache: Path) -> None:
    """Deletes entries that were not used for UNUSED_DAYS. Processes that have mapped a file keep it."""
    remove_unused_notes(cache)
    for entry in cache.iterdir():
        is_ours = (entry / CHECKSUMS).is_file() or entry.name.startswith(DRAFT)
        with contextlib.suppress(OSError):
            if is_ours and entry.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
                shutil.rmtree(entry, ignore_errors=True)


def _is_whole(directory: Path) -> bool:
    """Whether every file is there and has the content that was written."""
    try:
        checksums = json.loads((directory / CHECKSUMS).read_text(encoding="utf-8"))
        return all(has_sha256(Location(directory / name), checksum) for name, checksum in checksums.items())
    except (OSError, ValueError):
        return False


def _write(directory: Path, arrays: dict[str, Ragged]) -> None:
    """Any process may write at any time, so each has a draft of its own, and what lies there whole stays."""
    with scratch_directory(directory.with_name(f"{DRAFT}{secrets.token_hex(8)}")) as draft:
        draft.chmod(0o700)  # what users like is theirs, also in a cache that several people share
        for name, ragged in arrays.items():
            for field in FIELDS:
                np.save(_file(draft, name, field), getattr(ragged, field))
        checksums = {file.name: sha256_of(file) for file in draft.iterdir()}
        (draft / CHECKSUMS).write_text(json.dumps(checksums), encoding="utf-8")
        if directory.is_dir() and not _is_whole(directory):
            shutil.rmtree(directory, ignore_errors=True)
        try:
            draft.rename(directory)
        except OSError:
            if not _is_whole(directory):  # else another process was faster
                raise
