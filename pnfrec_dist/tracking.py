"""MLflow: one run per training. The driver keeps records (spool.py), and a thread of it sends them.

`python -m pnfrec_dist.tracking flush` sends what runs could not send.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the sending thread tries again by itself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException

from pnfrec_dist.cli import run_command
from pnfrec_dist.config import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.mappings import flatten, to_mapping
from pnfrec_dist.schema import MANIFEST_NAME, Manifest
from pnfrec_dist.spool import RECORDS, Record, Spool, locked
from pnfrec_dist.storage import Location

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
PACKAGES = ("torch", "ray", "pyspark", "mlflow", "pyarrow", "numpy", "pnfrec-dist")
MAX_DIGEST = 36
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
KEY_TAG = "pnfrec.run"
"""Tag by which a run is found again, whatever became of the answer to its creation."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a failed record is tried again: doubled each time."""
START_PATIENCE, END_PATIENCE = 10.0, 15.0
"""Seconds that a command waits for an MLflow that does not answer, at its start and its end."""
UPLOAD_PATIENCE = 1800.0
"""Seconds that it waits at its end while files are sent."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else sqlite:///<current directory>/mlflow.db. Raises InputError when it cannot work."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = given or f"sqlite:///{Path('mlflow.db').resolve()}"
    way_out = "correct it, or unset MLFLOW_TRACKING_URI to log to sqlite:///mlflow.db"
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI is {shown(uri)!r} ({error}); {way_out}") from error
    if uri == "databricks":
        return uri
    if scheme not in SCHEMES:
        must = f"it must start with one of {', '.join(SCHEMES)}"
        raise InputError(f"MLFLOW_TRACKING_URI is {shown(uri)!r}; {must}; {way_out}")
    if scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri == "sqlite:///":
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}; it must read sqlite:///<path>; {way_out}")
        file = Path(uri.removeprefix("sqlite:///")).resolve()
        if file.is_dir() or not file.parent.is_dir():
            wrong = f"{file} is a directory" if file.is_dir() else f"{file.parent} is not a directory"
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}, but {wrong}; {way_out}")
    return uri


def shown(uri: str) -> str:
    """Without the name and password that it may hold, well formed or not."""
    if uri.startswith("sqlite:"):
        return uri
    return re.sub(r"(password|token)=[^&]*", r"\1=***", re.sub(r"//.*@", "//", uri))


class Sender:
    """Sends the records of a spool in order. Whatever was sent before, in part or unanswered, may be sent again."""

    def __init__(self, spool: Spool, key: str, uri: str) -> None:
        self.spool, self.key, self.uri = spool, key, uri
        self.run_id = ""
        self.missing: list[str] = []
        """directories that were to be sent and are gone"""
        self._client: MlflowClient | None = None

    def send_next(self) -> None:
        """Sends one record, if there is one. Raises InputError where MLflow refuses, others where it is in trouble."""
        record = self.spool.next()
        if record is None:
            return
        client = self._client = self._client or MlflowClient(tracking_uri=self.uri)
        if not self.run_id:
            self.run_id = self._find(client)
            if not self.run_id and self.spool.sent:  # another server than last time: it gets all of it
                self.spool.mark_sent(0)
                return
        _SEND[record["kind"]](self, client, record)
        self.spool.mark_sent(self.spool.sent + 1)

    def _find(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self.spool.records[0]["experiment"])
        if experiment is None or experiment.lifecycle_stage == "deleted":
            return ""
        runs = client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{self.key}'", max_results=1)
        return runs[0].info.run_id if runs else ""

    def _start(self, client: MlflowClient, record: Record) -> None:
        with _one_at_a_time(self.uri):
            experiment = _experiment(client, record["experiment"], self.uri)
        if not self.run_id:
            tags = {KEY_TAG: self.key, **record["tags"]}
            created = client.create_run(experiment, start_time=record["at"], run_name=record["name"], tags=tags)
            self.run_id = created.info.run_id
        client.log_batch(self.run_id, params=[Param(k, v) for k, v in record["params"].items()])
        dataset = Dataset(source_type="local", **record["dataset"])
        client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        client.log_text(self.run_id, record["manifest"], f"data/{MANIFEST_NAME}")

    def _metrics(self, client: MlflowClient, record: Record) -> None:
        metrics = [Metric(name, value, record["at"], record["step"]) for name, value in record["metrics"].items()]
        client.log_batch(self.run_id, metrics)

    def _tags(self, client: MlflowClient, record: Record) -> None:
        client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in record["tags"].items()])

    def _artifacts(self, client: MlflowClient, record: Record) -> None:
        directory = self.spool.directory / record["directory"]
        if directory.is_dir():
            client.log_artifacts(self.run_id, str(directory), record["path"])
        else:
            self.missing.append(str(directory))

    def _status(self, client: MlflowClient, record: Record) -> None:
        if record["status"] == RUNNING:
            client.update_run(self.run_id, status=RUNNING)
        else:
            client.set_terminated(self.run_id, record["status"], record["at"])


_SEND: dict[str, Callable[[Sender, MlflowClient, Record], None]] = {
    "start": Sender._start,
    "metrics": Sender._metrics,
    "tags": Sender._tags,
    "artifacts": Sender._artifacts,
    "status": Sender._status,
}


class TrackedRun:
    """One MLflow run, written from a thread: no call here waits for MLflow, but for start and close."""

    def __init__(self, directory: Path, key: str, uri: str, say: Callable[[str], None]) -> None:
        """directory: the run's; key: see KEY_TAG; say: prints a line."""
        self.spool, self.uri, self.say = Spool(directory), uri, say
        self.sender = Sender(self.spool, key, uri)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._gave_up = False
        self._trouble: Exception | None = None
        self._waiting_since: float | None = None
        """since when the record in turn is being sent, first try included"""
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)

    @property
    def run_id(self) -> str:
        """MLflow's id, or "" as long as MLflow has not given one."""
        return self.sender.run_id

    def start(self, settings: Settings, manifest: Manifest, data_dir: Location) -> None:
        """Begins the run, or takes it up again, with params, tags, versions and the data set as input.

        Raises InputError when MLflow refuses. One that does not answer is left to answer later, if it is a server.
        """
        for name in ("alembic", "mlflow.store.db.utils"):  # they tell of every table they create
            logging.getLogger(name).setLevel(logging.WARNING)
        params = {k: str(v) for k, v in flatten(to_mapping(settings)).items()}
        is_new = self.add(
            "start",
            "start",
            experiment=settings.experiment,
            name=self.spool.directory.name,
            tags=_tags(settings, manifest),
            params=params,
            dataset=_dataset(manifest, data_dir),
            manifest=manifest.to_json(),
        )
        if not is_new:
            self._status(RUNNING)
        started = time.monotonic()
        self._thread.start()
        is_server = self.uri.startswith(("http", "databricks"))
        while self.spool.unsent and self._trouble is None and self._thread.is_alive():
            if is_server and time.monotonic() - started > START_PATIENCE:
                break
            time.sleep(0.02)
        trouble = self._trouble
        refused = isinstance(trouble, RestException) and 400 <= trouble.get_http_status_code() < 500
        if trouble is None or (is_server and not refused and not isinstance(trouble, InputError)):
            return
        self._gave_up = True
        self._closing.set()
        if isinstance(trouble, InputError):
            raise trouble
        where = f"MLflow at {shown(self.uri)} refused to start a run"
        raise InputError(f"{where}: {self._reason(trouble)}; check MLFLOW_TRACKING_URI") from trouble

    def add(self, key: str, kind: str, **content: Any) -> bool:
        """Keeps a record (see Sender) and sends it in its turn; False where one of this key was kept before."""
        had_room = not self.spool.pending
        is_new = self.spool.add(key, kind, **content)
        if had_room and self.spool.pending:
            records = self.spool.directory / RECORDS
            self.say(f"warning: cannot write {records} ({self.spool.problem}); what it lacks is kept in memory")
        self._wake.set()
        return is_new

    def log_metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        self.add(key, "metrics", metrics=metrics, step=step)

    def log_tags(self, key: str, tags: dict[str, str]) -> None:
        self.add(key, "tags", tags=tags)

    def log_directory(self, key: str, directory: Path, path: str) -> None:
        """directory: below the run's, so that it is found where the run was moved to."""
        self.add(key, "artifacts", directory=str(directory.relative_to(self.spool.directory)), path=path)

    def close(self, status: str) -> None:
        """Marks how the run ended, and waits until all is sent; not for ever where MLflow does not answer."""
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
        if self.spool.unsent:
            self.say(
                f"warning: {self.spool.unsent} records wait in {self.spool.directory / RECORDS}; once MLflow answers: "
                f"python -m pnfrec_dist.tracking flush {self.spool.directory}"
            )
        if self.spool.pending:
            what = f"{len(self.spool.pending)} records are not on disk ({self.spool.problem}), so MLflow lacks them"
            self.say(f"warning: {what}; make room, and start the same command again")

    def _status(self, status: str) -> None:
        self.add(f"status/{len(self.spool.records) + len(self.spool.pending)}", "status", status=status)

    def _send_all(self) -> None:
        with locked(self.spool.directory, wait=True):
            wait = FIRST_WAIT
            while not self._gave_up and (self.spool.unsent or not self._closing.is_set()):
                self._wake.clear()
                try:
                    while self.spool.unsent:
                        self._waiting_since = self._waiting_since or time.monotonic()
                        self.sender.send_next()
                        if self._trouble is not None:
                            self.say(f"MLflow at {shown(self.uri)} answers again")
                        self._trouble, self._waiting_since, wait = None, None, FIRST_WAIT
                except Exception as error:  # whatever MLflow raises, training goes on
                    if self._trouble is None:
                        records = self.spool.directory / RECORDS
                        self.say(
                            f"warning: MLflow at {shown(self.uri)}: {self._reason(error)}; records wait in {records}"
                        )
                    self._trouble = error
                    time.sleep(1.0) if self._closing.is_set() else self._closing.wait(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
                else:
                    if not self._closing.is_set():
                        self._wake.wait()

    def _reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0].replace(self.uri, shown(self.uri))


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Programs that meet a new SQLite database together would all create its tables and fail: they queue here."""
    if not uri.startswith("sqlite:"):
        yield
        return
    with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(f"the MLflow experiment {name!r} was deleted; restore it or choose another --experiment")
        return found.experiment_id
    artifacts = Path("mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=artifacts)


def _tags(settings: Settings, manifest: Manifest) -> dict[str, str]:
    tags = {"model": settings.model, "dataset": settings.dataset, "data_digest": manifest.digest}
    tags.update({f"version.{name}": metadata.version(name) for name in PACKAGES})
    tags["version.python"] = platform.python_version()
    tags["mlflow.source.name"] = "python -m pnfrec_dist.train"
    tags["mlflow.source.type"] = "LOCAL"
    commit = git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def git_commit() -> str:
    """The commit of the code that runs, with "-dirty" when the work tree differs; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _dataset(manifest: Manifest, data_dir: Location) -> dict[str, str]:
    return {
        "name": manifest.dataset,
        "digest": manifest.digest[:MAX_DIGEST],
        "source": json.dumps({"uri": data_dir.uri}),
        "profile": json.dumps(manifest.counts),
    }


def main(args: Sequence[str]) -> int:
    """Sends the records that runs could not send. Raises InputError where MLflow does not take them."""
    parser = argparse.ArgumentParser(
        prog="python -m pnfrec_dist.tracking", description="Sends to MLflow what runs could not send while they went."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    flush = commands.add_parser("flush", help="send the records that wait in the directories of runs")
    flush.add_argument("runs", nargs="*", type=Path, help="directories of runs; default: all in --output-dir")
    flush.add_argument("--output-dir", type=Path, default=Path("runs"), help="default: runs")
    arguments = parser.parse_args(args)
    directories = arguments.runs or sorted(file.parent for file in arguments.output_dir.glob(f"*/{RECORDS}"))
    uri = tracking_uri()
    refused = []
    for directory in directories:
        if problem := _flush(directory, uri):
            refused.append(problem)
    if refused:
        raise InputError("; ".join(refused))
    if not directories:
        print(f"no records in {arguments.output_dir}")
    return 0


def _flush(directory: Path, uri: str) -> str:
    """What is wrong with this run, or "". Raises InputError where MLflow takes nothing, of whatever run."""
    if not (directory / RECORDS).is_file():
        return f"{directory} has no {RECORDS}; name the directory of a run"
    try:
        key = json.loads((directory / "run.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return f"{directory} has no run.json that can be read; remove the directory, or mend it"
    with locked(directory, wait=False) as is_ours:
        if not is_ours:
            print(f"{directory}: left to the command that trains it")
            return ""
        spool = Spool(directory)
        before, sender = spool.unsent, Sender(spool, key, uri)
        try:
            while spool.unsent:
                sender.send_next()
        except InputError as error:
            return f"{directory}: {error}"
        except (MlflowException, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(uri, shown(uri))
            raise InputError(
                f"{directory}: {spool.unsent} records wait on; MLflow at {shown(uri)}: {reason}; check "
                "MLFLOW_TRACKING_URI, and try again when it answers"
            ) from error
    print(f"{directory}: {before} records sent" if before else f"{directory}: all sent before")
    for missing in sender.missing:
        print(f"warning: {missing} is gone and was not sent")
    return ""


if __name__ == "__main__":
    run_command(main)
