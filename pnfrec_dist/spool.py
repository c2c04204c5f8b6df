"""What a run has to tell MLflow, kept in its directory until MLflow has it.

tracking.jsonl   one record a line, in order
tracking.sent    how many of them MLflow has
tracking.lock    held by the process that sends
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORDS, SENT, LOCK = "tracking.jsonl", "tracking.sent", "tracking.lock"

Record = dict[str, Any]
"""{"key": unique in the run, "kind", "at": milliseconds since 1970, ...}"""


class Spool:
    """The records of one run. Safe to use from several threads; one process at a time writes."""

    def __init__(self, directory: Path) -> None:
        """A last line that a crash cut short is removed."""
        self.directory = directory
        self._file = directory / RECORDS
        self._guard = threading.Lock()
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._file, len(whole))
        self.records: list[Record] = [json.loads(line) for line in whole.splitlines()]
        self._keys = {record["key"] for record in self.records}
        with contextlib.suppress(OSError, ValueError):
            self.sent = min(int((directory / SENT).read_text()), len(self.records))
            return
        self.sent = 0

    def add(self, key: str, kind: str, **content: Any) -> bool:
        """Keeps a record, on the disk once this returns; False where one with this key is kept already."""
        with self._guard:
            if key in self._keys:
                return False
            record = {"key": key, "kind": kind, "at": int(time.time() * 1000), **content}
            with self._file.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._keys.add(key)
            self.records.append(record)
            return True

    def next(self) -> Record | None:
        """The oldest record that was not sent."""
        with self._guard:
            return self.records[self.sent] if self.sent < len(self.records) else None

    def mark_sent(self, count: int) -> None:
        """The first `count` records are sent. Should this be lost, some are sent again, which changes nothing."""
        with self._guard:
            self.sent = count
            draft = self.directory / f".{SENT}.writing"
            draft.write_text(str(count))
            draft.rename(self.directory / SENT)

    @property
    def unsent(self) -> int:
        return len(self.records) - self.sent

    @contextlib.contextmanager
    def locked(self, *, wait: bool) -> Iterator[bool]:
        """Whether this process is the one that sends, as long as the context lasts; wait: until it is."""
        with (self.directory / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
