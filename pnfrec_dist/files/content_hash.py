"""sha256 checks of files, once per machine: a file that has not changed since is not read again.

$PNFREC_CACHE/checked/<hash of sha256 and file state>    a note that this state of a file has this sha256
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.locks import held

SETTLED_SECONDS = 2.0
"""A file that changed within this time gets no note: another change might not be visible in its times."""
UNUSED_DAYS = 30
"""Cache entries that were not used for this long are removed."""


def cache_directory() -> Path:
    """The cache of this machine: $PNFREC_CACHE, else pnfrec-dist in the user's cache directory."""
    named = os.environ.get("PNFREC_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "pnfrec-dist"


def has_sha256(file: Location, sha256: str) -> bool:
    """Whether a file has this content. If several processes ask at once, they wait for the first one to read it.

    Raises OSError if the file cannot be read. A cache that cannot be written only costs time.
    """
    state = _state(file)
    if state is None:
        return file.sha256() == sha256
    note = cache_directory() / "checked" / hashlib.sha256(f"{sha256} {state}".encode()).hexdigest()
    if _is_there(note):
        return True
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(note.with_suffix(".lock"), wait=True, remove=True))
        if _is_there(note):
            return True
        is_settled = _age(file) > SETTLED_SECONDS
        matches = file.sha256() == sha256
        if matches and is_settled and _state(file) == state:
            with contextlib.suppress(OSError):
                note.touch()
        return matches


def remove_unused_notes(cache: Path) -> None:
    """Removes notes that were not used for UNUSED_DAYS."""
    for note in (cache / "checked").glob("*"):
        with contextlib.suppress(OSError):
            if note.stat().st_mtime < time.time() - UNUSED_DAYS * 86400:
                note.unlink()


def _state(file: Location) -> str | None:
    """A text that differs whenever the file was changed or replaced; None if its storage has no change times."""
    if not file.is_local:
        info = file.info()
        return json.dumps([file.uri, info.size, info.mtime_ns]) if info.mtime_ns else None
    found = file.path.stat()
    path = str(file.path.resolve())
    return json.dumps([path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev])


def _age(file: Location) -> float:
    """Seconds since the last change."""
    changed = file.path.stat().st_ctime if file.is_local else (file.info().mtime_ns or 0) / 1e9
    return time.time() - changed


def _is_there(note: Path) -> bool:
    """Whether the note exists; marks it as used."""
    with contextlib.suppress(OSError):
        os.utime(note)
        return True
    return False
