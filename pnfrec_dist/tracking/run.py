"""A run in MLflow. The driver writes records to a spool (spool.py), and one of its threads sends them (sender.py)."""

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.tracking.address import shown
from pnfrec_dist.tracking.run_start import Opening, dataset_input, origin_tags
from pnfrec_dist.tracking.spool import RECORDS, RUNNING, Spool, locked

if TYPE_CHECKING:
    from pnfrec_dist.tracking.sender import Sender

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a record that failed is sent again; doubled each time, up to the longest wait."""
START_PATIENCE, END_PATIENCE = 10.0, 15.0
"""Seconds that a command waits for an MLflow that does not answer, at its start and its end."""
UPLOAD_PATIENCE = 1800.0
"""Seconds that a command waits at its end while files are sent."""


def model_name(*parts: str) -> str:
    """A name that MLflow accepts for a model."""
    return re.sub(r"[/:.%\"']", "-", "-".join(parts))


class TrackedRun:
    """One MLflow run, sent by a thread. Only start and close wait for MLflow."""

    def __init__(self, directory: Path, key: str, uri: str, say: Callable[[str], None]) -> None:
        """directory: the run's; key: see KEY_TAG; say: prints a line."""
        self.spool, self.key, self.uri, self.say = Spool(directory), key, uri, say
        self._sender: Sender | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._trouble: Exception | None = None
        self._refusal: Exception | None = None
        """why the run cannot begin in MLflow; nothing more is sent then"""
        self._waiting_since: float | None = None
        """time of the first try to send the current record"""
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)

    @property
    def _is_server(self) -> bool:
        return self.uri.startswith(("http", "databricks"))

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, or "" if MLflow has not given one yet."""
        return "" if self._sender is None else self._sender.run_id

    def begin(self, opening: Opening) -> None:
        """Begins or resumes the run, with params, tags, versions and the data set as input.

        Does not wait for MLflow; see require_accepted.
        """
        for name in ("alembic", "mlflow.store.db.utils"):  # they log every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        if not self.keep(opening):
            self._status(RUNNING)
        self._thread.start()

    def require_accepted(self) -> None:
        """Raises InputError if MLflow has refused the run. A server that does not answer may answer later."""
        refusal = self._refusal
        if isinstance(refusal, InputError):
            raise refusal
        if refusal is not None:
            where = f"MLflow at {shown(self.uri)} refused to start a run"
            raise InputError(f"{where}: {self._reason(refusal)}; check MLFLOW_TRACKING_URI") from refusal

    def _is_refusal(self, error: Exception) -> bool:
        """Whether a run that MLflow does not have yet cannot begin: trying again would not help."""
        status = getattr(error, "get_http_status_code", lambda: 0)()  # of an answer by MLflow
        return not self.run_id and (isinstance(error, InputError) or 400 <= status < 500 or not self._is_server)

    def start(self, opening: Opening) -> None:
        """Begins the run and waits until MLflow has it. Raises as require_accepted does.

        Waits at most START_PATIENCE seconds for a server that does not answer.
        """
        self.begin(opening)
        while self.spool.unsent and self._trouble is None and self._thread.is_alive():
            asked = self._waiting_since
            if self._is_server and asked is not None and time.monotonic() - asked > START_PATIENCE:
                break
            time.sleep(0.02)
        self.require_accepted()

    def keep(self, opening: Opening) -> bool:
        """Keeps the first record of the run; False if it was kept before."""
        return self.add(
            "start",
            "start",
            experiment=opening.experiment,
            name=opening.name,
            tags={**opening.tags, "directory": str(self.spool.directory), **origin_tags(opening.manifest)},
            params=opening.params,
            dataset=dataset_input(opening.manifest, opening.data_dir),
            manifest=opening.manifest.to_json(),
            parent=opening.parent,
        )

    def add(self, key: str, kind: str, **content: Any) -> bool:
        """Keeps a record (see Sender), to be sent in its turn; False if one with this key was kept before."""
        had_room = not self.spool.pending
        is_new = self.spool.add(key, kind, **content)
        if had_room and self.spool.pending:
            records = self.spool.directory / RECORDS
            self.say(f"warning: cannot write {records} ({self.spool.problem}); new records are kept in memory")
        self._wake.set()
        return is_new

    def log_metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        self.add(key, "metrics", metrics=metrics, step=step)

    def log_tags(self, key: str, tags: dict[str, str]) -> None:
        self.add(key, "tags", tags=tags)

    def log_directory(self, key: str, directory: Path, path: str) -> None:
        """directory: below the run's directory. It is stored as a relative path, so the run may be moved."""
        self.add(key, "artifacts", directory=str(directory.relative_to(self.spool.directory)), path=path)

    def log_model(self, key: str, directory: Path, tags: dict[str, str], step: int, metrics: str) -> None:
        """directory: below the run's directory, in MLflow's format; tags: with model and dataset, which name the model;
        metrics: key of the record with the metrics to show with the model."""
        where = str(directory.relative_to(self.spool.directory))
        name = model_name(tags["model"], tags["dataset"])
        self.add(key, "model", directory=where, name=name, step=step, metrics=metrics, tags=tags)

    def register(self, key: str, run_key: str, name: str, description: str, tags: dict[str, str]) -> None:
        """Registers the model of the run with this key as a version of a registered model. The tags data_digest and
        SCORE_TAG decide whether it is the best; see Sender."""
        self.add(key, "register", run=run_key, name=name, description=description, tags=tags)

    def close(self, status: str) -> None:
        """Records how the run ended and waits until all records are sent, for a limited time if MLflow is silent."""
        self._status(status)
        self._closing.set()
        self._wake.set()
        started = time.monotonic()
        while self.spool.unsent and self._thread.is_alive():
            record, now = self.spool.next(), time.monotonic()
            is_upload = record is not None and record["kind"] == "artifacts" and self._trouble is None
            patience = UPLOAD_PATIENCE if is_upload else END_PATIENCE
            if now - max(started, self._waiting_since or now) > patience:
                break
            time.sleep(0.02)
        if not self.spool.unsent:
            self._thread.join(END_PATIENCE)  # the thread releases the lock, which a flush needs
        elif self._refusal is None:
            self.say(
                f"warning: {self.spool.unsent} records wait in {self.spool.directory / RECORDS}; when MLflow answers, "
                f"run: python -m pnfrec_dist.tracking flush {self.spool.directory}"
            )
        if self.spool.pending:
            what = f"{len(self.spool.pending)} records are not on disk ({self.spool.problem}), so MLflow lacks them"
            self.say(f"warning: {what}; make room, and run the same command again")

    def conclude(self, status: str, tags: dict[str, str]) -> None:
        """Instead of start and close: records the end of a run whose process died, unless that process did so."""
        told = [record["status"] for record in self.spool.records if record["kind"] == "status"]
        if not self.spool.records or (told and told[-1] != RUNNING):
            return
        self.log_tags(f"state/{len(self.spool.records)}", tags)
        self._thread.start()
        self.close(status)
        if self._refusal is not None:
            self._say_that_records_wait(self._refusal)

    def _status(self, status: str) -> None:
        self.add(f"status/{len(self.spool.records) + len(self.spool.pending)}", "status", status=status)

    def _send_all(self) -> None:
        with locked(self.spool.directory, wait=True):
            wait = FIRST_WAIT
            while self.spool.unsent or not self._closing.is_set():
                self._wake.clear()
                try:
                    sender = self._sender = self._sender or self._new_sender()
                    while self.spool.unsent:
                        self._waiting_since = self._waiting_since or time.monotonic()
                        sender.send_next()
                        if self._trouble is not None:
                            self.say(f"MLflow at {shown(self.uri)} answers again")
                        self._trouble, self._waiting_since, wait = None, None, FIRST_WAIT
                except Exception as error:  # whatever MLflow raises, training goes on
                    if self._is_refusal(error):
                        self._refusal = error
                        return
                    if self._trouble is None:
                        self._say_that_records_wait(error)
                    self._trouble = error
                    time.sleep(1.0) if self._closing.is_set() else self._closing.wait(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
                else:
                    if not self._closing.is_set():
                        self._wake.wait()

    def _say_that_records_wait(self, error: Exception) -> None:
        where = self.spool.directory / RECORDS
        self.say(f"warning: MLflow at {shown(self.uri)}: {self._reason(error)}; records wait in {where}")

    def _new_sender(self) -> "Sender":
        from pnfrec_dist.tracking.sender import Sender  # MLflow takes seconds to import, and a dry run does not need it

        return Sender(self.spool, self.key, self.uri)

    def _reason(self, error: Exception) -> str:
        return first_line(error).replace(self.uri, shown(self.uri))
