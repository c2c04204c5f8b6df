"""Files and directories that are complete or absent: written as a draft next to their place, then moved there.

.<name>.writing  a draft (.<name>.<writer> if several processes may write at once); the next writer overwrites it
.<name>.old      the old directory, for the moment in which both exist
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
from pnfrec_dist.files.locations import Location, sync_to_disk


@contextmanager
def writing(where: str, way_out: str) -> Iterator[None]:
    """Turns an OSError into a one-line InputError that says what could not be written.

    where: fits after "cannot write", such as "to <directory>" or "--out <file>".
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {where} ({error.strerror or error}); {way_out}") from error


def draft_of(path: Path, writer: object = "writing") -> Path:
    """The path of the draft of `path`."""
    return path.with_name(f".{path.name}.{writer}")


def old_of(path: Path) -> Path:
    """The path to which an old `path` is moved."""
    return path.with_name(f".{path.name}.old")


@contextmanager
def replaced(path: Path, writer: object = "writing") -> Iterator[Path]:
    """A draft file that replaces `path` in one move at the end, once it is on the disk; removed after an error.

    A kill leaves the old file and the draft. writer: gives processes that may write at once different drafts.
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
    """Writes a UTF-8 file, in one move."""
    with replaced(path, writer) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(
    path: Path, content: Any, *, indent: int | None = None, sort_keys: bool = False, writer: object = "writing"
) -> None:
    """Writes a JSON file with a newline at the end, in one move."""
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys) + "\n", writer)


def require_writable(path: Path) -> None:
    """Raises OSError if no file can be written at `path`. Does not change `path`."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = draft_of(path)
    draft.touch()
    draft.unlink()


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """An empty directory for the duration of the context. Removes leftovers of a kill first."""
    _remove(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        _remove(path)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """A draft directory that replaces `path` at the end, once it is on the disk; removed after an error.

    For one process at a time. A kill leaves the old directory or none, never an incomplete one; see move_in.
    """
    put_back(path)
    with scratch_directory(draft_of(path)) as draft:
        yield draft
        for file in draft.rglob("*"):
            sync_to_disk(file)
        move_in(draft, path)


def move_in(draft: Path, path: Path) -> None:
    """Moves the directory `draft`, whose files are on the disk, to `path`, and removes the old directory.

    A kill between the two moves leaves no directory; put_back then restores the old one.
    """
    move_over(*(Location(place.absolute()) for place in (draft, path, old_of(path))))


def put_back(path: Path) -> None:
    """Cleans up after a kill in move_in."""
    move_back(*(Location(place.absolute()) for place in (path, old_of(path))))


def move_over(draft: Location, place: Location, old: Location) -> None:
    """move_in for any file system that renames directories. old: to which the old directory is moved meanwhile."""
    draft.sync()
    has_old = place.exists()
    if has_old:
        place.rename(old)
    try:
        draft.rename(place)
    except OSError:
        if has_old:
            old.rename(place)
        raise
    place.parent.sync()
    with contextlib.suppress(OSError):
        old.delete()


def move_back(place: Location, old: Location) -> None:
    """Cleans up after a kill in move_over."""
    if old.exists() and not place.exists():
        old.rename(place)
    with contextlib.suppress(OSError):
        old.delete()


def _remove(path: Path) -> None:
    """Removes a directory, or a link to one."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
