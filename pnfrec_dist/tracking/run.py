"""MLflow: one run per training. The driver keeps records (spool.py), and a thread of it sends them.

`python -m pnfrec_dist.tracking flush` sends what runs could not send.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException, RestException

from pnfrec_dist.cli import run_command
from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.schema import Manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.tracking.sender import RUNNING, NotYetError, Sender, shown
from pnfrec_dist.tracking.spool import RECORDS, Spool, locked

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
PACKAGES = ("torch", "ray", "pyspark", "mlflow", "pyarrow", "numpy", "pnfrec-dist")
MAX_DIGEST = 36
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


@dataclass(frozen=True)
class Opening:
    """What MLflow is told of a run at its start."""

    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    manifest: Manifest
    data_dir: Location
    parent: str = ""
    """key of the run that this one is part of"""


def opening_of_training(
    settings: Settings, manifest: Manifest, data_dir: Location, name: str = "", parent: str = ""
) -> Opening:
    """name: default "<model> <dataset> seed <seed>"."""
    name = name or f"{settings.model} {settings.dataset} seed {settings.seed}"
    tags = {"kind": "training", "model": settings.model, "seed": str(settings.seed)}
    tags["mlflow.source.name"] = "python -m pnfrec_dist.train"
    params = {k: str(v) for k, v in flatten(to_mapping(settings)).items()}
    return Opening(settings.experiment, name, tags, params, manifest, data_dir, parent)


def model_name(*parts: str) -> str:
    """A name that MLflow takes for a model."""
    return re.sub(r"[/:.%\"']", "-", "-".join(parts))


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

    def start(self, opening: Opening) -> None:
        """Begins the run, or takes it up again, with params, tags, versions and the data set as input.

        Raises InputError when MLflow refuses. One that does not answer is left to answer later, if it is a server.
        """
        for name in ("alembic", "mlflow.store.db.utils"):  # they tell of every table they create
            logging.getLogger(name).setLevel(logging.WARNING)
        is_new = self.keep(opening)
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

    def keep(self, opening: Opening) -> bool:
        """Keeps what the run begins with; False where it was kept before."""
        return self.add(
            "start",
            "start",
            experiment=opening.experiment,
            name=opening.name,
            tags={**opening.tags, "directory": str(self.spool.directory), **_origin(opening.manifest)},
            params=opening.params,
            dataset=_dataset(opening.manifest, opening.data_dir),
            manifest=opening.manifest.to_json(),
            parent=opening.parent,
        )

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

    def log_model(self, key: str, directory: Path, tags: dict[str, str], step: int, metrics: str) -> None:
        """directory: below the run's, in MLflow's form; tags: with model and dataset, which name it; metrics: key of
        those that it reached, shown with it."""
        where = str(directory.relative_to(self.spool.directory))
        name = model_name(tags["model"], tags["dataset"])
        self.add(key, "model", directory=where, name=name, step=step, metrics=metrics, tags=tags)

    def register(self, key: str, run_key: str, name: str, description: str, tags: dict[str, str]) -> None:
        """The model of the run with this key as a version of a registered model. tags: data_digest and SCORE_TAG decide
        whether it is the best; see Sender."""
        self.add(key, "register", run=run_key, name=name, description=description, tags=tags)

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

    def conclude(self, status: str, tags: dict[str, str]) -> None:
        """Instead of start and close: how a run ended whose process died; nothing where it told of an end itself."""
        told = [record["status"] for record in self.spool.records if record["kind"] == "status"]
        if not self.spool.records or (told and told[-1] != RUNNING):
            return
        self.log_tags(f"state/{len(self.spool.records)}", tags)
        self._thread.start()
        self.close(status)

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


def _origin(manifest: Manifest) -> dict[str, str]:
    """Tags that say of what data and code a run is."""
    tags = {"dataset": manifest.dataset, "data_digest": manifest.digest}
    tags["versions"] = _versions(PACKAGES)
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


def code_versions() -> str:
    """The commit and the packages that a reader may want to know."""
    return f"{(git_commit() or 'no repository')[:12]}, {_versions(('torch', 'ray', 'mlflow', 'pyspark'))}"


def _versions(packages: Sequence[str]) -> str:
    """Of those that are installed (a machine that trains needs no Spark), and of Python."""
    found = []
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join([*found, f"Python {platform.python_version()}"])


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
    found = [file.parent for file in arguments.output_dir.rglob(RECORDS)]
    directories = arguments.runs or sorted(found, key=lambda path: (len(path.parts), path))  # parents come first
    uri = tracking_uri()
    problems: dict[Path, str] = {}
    found_any = bool(directories)
    for _ in range(2):  # a reproduction's own records come before and after those of its trainings
        for directory in directories:
            problems[directory] = _flush(directory, uri)
        directories = [directory for directory, problem in problems.items() if problem]
    if directories:
        raise InputError("; ".join(problems[directory] for directory in directories))
    if not found_any:
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
        except (InputError, NotYetError) as error:
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
