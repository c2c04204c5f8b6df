"""Lock files. The system releases a lock however the process that holds it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, wait: bool = False, remove: bool = False) -> Iterator[bool]:
    """Locks `path` for the duration of the context; gives whether this worked. wait: waits until it does.

    Creates the file if it is missing; remove: deletes it at the end. Two contexts in one process exclude each other
    like two processes. Raises OSError if the file cannot be opened, or if its file system has no locks.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_ours = False
            else:
                is_ours = True
                if not _lies_at(path, file.fileno()):  # its last holder has deleted it
                    continue
            try:
                yield is_ours
            finally:
                if is_ours and remove:
                    path.unlink(missing_ok=True)
            return


def _lies_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
