"""Files and directories that are whole or absent: written as a draft beside their place, then moved there.

.<name>.writing  a draft (.<name>.<writer> where several processes may write at once); the next writer starts it anew
.<name>.old      what lay in a directory's place before, for the moment in which both exist
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import sync_to_disk


@contextmanager
def writing(where: str, way_out: str) -> Iterator[None]:
    """Says in one line where nothing could be written: raises InputError for an OSError.

    where: with its preposition, "to <directory>", "--out <file>".
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {where} ({error.strerror or error}); {way_out}") from error


def draft_of(path: Path, writer: object = "writing") -> Path:
    """Where what shall be `path` is written."""
    return path.with_name(f".{path.name}.{writer}")


def old_of(path: Path) -> Path:
    """Where what lies at `path` is set aside."""
    return path.with_name(f".{path.name}.old")


@contextmanager
def replaced(path: Path, writer: object = "writing") -> Iterator[Path]:
    """A draft file, which takes the place of `path` in one move at the end, once on the disk; gone after an error.

    A kill leaves the old file, and the draft. writer: tells the drafts of processes apart that may write at once.
    """
    draft = draft_of(path, writer)
    try:
        yield draft
        sync_to_disk(draft)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, writer: object = "writing") -> None:
    """In one move, UTF-8."""
    with replaced(path, writer) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(
    path: Path, content: Any, *, indent: int | None = None, sort_keys: bool = False, writer: object = "writing"
) -> None:
    """In one move, with a newline at the end."""
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys) + "\n", writer)


def require_writable(path: Path) -> None:
    """Raises OSError where no file can be put into the place of `path`, which stays as it is."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = draft_of(path)
    draft.touch()
    draft.unlink()


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """An empty directory as long as the context lasts; what a kill left of it goes first."""
    _remove(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A draft directory, which takes the place of `path` at the end, once it is on the disk; gone after an error.

    One process at a time. A kill leaves the old directory or none, never half of one; see move_in.
    """
    put_back(path)
    with scratch_directory(draft_of(path)) as draft:
        yield draft
        for file in draft.rglob("*"):
            sync_to_disk(file)
        move_in(draft, path)


def move_in(draft: Path, path: Path) -> None:
    """Puts the directory `draft`, whose files are on the disk, into the place of `path`, and removes what lay there.

    A kill between its two moves leaves none; put_back mends that, with the old one.
    """
    sync_to_disk(draft)
    old = old_of(path)
    has_old = path.exists()
    if has_old:
        path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        if has_old:
            old.rename(path)
        raise
    sync_to_disk(path.parent)
    _remove(old)


def put_back(path: Path) -> None:
    """Settles what a kill in move_in left."""
    old = old_of(path)
    if old.exists() and not path.exists():
        old.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    """A directory, or a link to one."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
