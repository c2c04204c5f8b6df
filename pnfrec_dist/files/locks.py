"""Files that one process at a time holds. The system lets go of them however that process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, wait: bool = False, remove: bool = False) -> Iterator[bool]:
    """Whether this process holds `path`, as long as the context lasts; wait: until it does.

    The file is made where it is missing; remove: and goes in the end. Two contexts of one process exclude each other
    as those of two processes do. Raises OSError where the file cannot be opened, or its file system has no locks.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_ours = False
            else:
                is_ours = True
                if not _lies_at(path, file.fileno()):  # its last holder took it away meanwhile
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
