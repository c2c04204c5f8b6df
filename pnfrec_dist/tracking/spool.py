"""The spool: a run's records for MLflow, kept in the run's directory until MLflow has them.

tracking.jsonl   one record a line, in order
tracking.sent    how many of them MLflow has
tracking.lock    held by the process that sends
"""

import contextlib
import json
import os
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pnfrec_dist.evaluation.metrics import SELECTION_METRIC
from pnfrec_dist.files.atomic import write_text
from pnfrec_dist.files.locks import held

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's states of a run."""
SCORE_TAG = f"validation_{SELECTION_METRIC}"
"""Tag of a registered model's version: the score that decides which version has the alias "best"."""
RECORDS, SENT, LOCK = "tracking.jsonl", "tracking.sent", "tracking.lock"

Record = dict[str, Any]
"""{"key": unique in the run, "kind", "at": milliseconds since 1970, ...}"""


class Spool:
    """The records of one run. Safe to use from several threads; one process at a time writes."""

    def __init__(self, directory: Path) -> None:
        """Removes the last line if a crash left it incomplete."""
        self.directory = directory
        self._file = directory / RECORDS
        self._guard = threading.Lock()
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._file, len(whole))
        self.records: list[Record] = [json.loads(line) for line in whole.splitlines()]
        self.pending: list[Record] = []
        """records that could not be written to disk yet; they are sent only after that"""
        self.problem = ""
        """why they could not be written"""
        self._keys = {record["key"] for record in self.records}
        self._size = len(whole)
        with contextlib.suppress(OSError, ValueError):
            self.sent = min(int((directory / SENT).read_text()), len(self.records))
            return
        self.sent = 0

    def add(self, key: str, kind: str, **content: Any) -> bool:
        """Keeps a record on disk, or in `pending` if that fails; False if one with this key is kept already.

        Pending records are written together with the next one.
        """
        with self._guard:
            if key in self._keys:
                return False
            self._keys.add(key)
            self.pending.append({"key": key, "kind": kind, "at": int(time.time() * 1000), **content})
            lines = b"".join(json.dumps(record).encode() + b"\n" for record in self.pending)
            try:
                with self._file.open("ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                self.problem = error.strerror or str(error)
                with contextlib.suppress(OSError):
                    os.truncate(self._file, self._size)
                return True
            self.records += self.pending
            self.pending, self.problem, self._size = [], "", self._size + len(lines)
            return True

    def next(self) -> Record | None:
        """The oldest record on the disk that was not sent."""
        with self._guard:
            return self.records[self.sent] if self.sent < len(self.records) else None

    def mark_sent(self, count: int) -> None:
        """Notes that the first `count` records are sent. If the note is lost, some are sent twice: no harm."""
        with self._guard:
            self.sent = count
            with contextlib.suppress(OSError):
                write_text(self.directory / SENT, str(count))

    @property
    def unsent(self) -> int:
        """Records on the disk that were not sent."""
        return len(self.records) - self.sent


def locked(directory: Path, *, wait: bool) -> AbstractContextManager[bool]:
    """Whether this process may send, until the context ends; wait: waits until it may."""
    return held(directory / LOCK, wait=wait)
