"""MLflow: one run per training. The driver logs; workers never talk to MLflow."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pnfrec_dist.config import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.mappings import flatten, to_mapping
from pnfrec_dist.schema import MANIFEST_NAME, Manifest
from pnfrec_dist.storage import Location

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
PACKAGES = ("torch", "ray", "pyspark", "mlflow", "pyarrow", "numpy", "pnfrec-dist")
MAX_DIGEST = 36
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else sqlite:///<current directory>/mlflow.db. Raises InputError when it cannot work."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = given or f"sqlite:///{Path('mlflow.db').resolve()}"
    way_out = "correct it, or unset MLFLOW_TRACKING_URI to log to sqlite:///mlflow.db"
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI is {uri!r} ({error}); {way_out}") from error
    if uri == "databricks":
        return uri
    if scheme not in SCHEMES:
        raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}; it must start with one of {', '.join(SCHEMES)}; {way_out}")
    if scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri == "sqlite:///":
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}; it must read sqlite:///<path>; {way_out}")
        file = Path(uri.removeprefix("sqlite:///")).resolve()
        if file.is_dir() or not file.parent.is_dir():
            wrong = f"{file} is a directory" if file.is_dir() else f"{file.parent} is not a directory"
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}, but {wrong}; {way_out}")
    if scheme in ("http", "https"):
        _require_server(uri, way_out)
    return uri


def _require_server(uri: str, way_out: str) -> None:
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in is seen when the run starts
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"no MLflow server answers at MLFLOW_TRACKING_URI {uri!r} ({reason}); {way_out}") from error


class TrackedRun:
    """One MLflow run, written through one client.

    A log call that fails once the run has begun is said once and training goes on; the workers never wait for it.
    """

    def __init__(self, client: MlflowClient, run_id: str, uri: str) -> None:
        self.client, self.run_id, self.uri = client, run_id, uri
        self._warned = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._send(lambda: self.client.log_batch(self.run_id, [Metric(k, v, now, step) for k, v in metrics.items()]))

    def log_tags(self, tags: dict[str, str]) -> None:
        self._send(lambda: self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()]))

    def log_directory(self, directory: Path, artifact_path: str) -> None:
        self._send(lambda: self.client.log_artifacts(self.run_id, str(directory), artifact_path))

    def finish(self, status: str) -> None:
        self._send(lambda: self.client.set_terminated(self.run_id, status))

    def _send(self, call: Any) -> None:
        try:
            call()
        except (MlflowException, OSError) as error:
            if not self._warned:
                print(f"warning: MLflow at {self.uri} took no more records: {str(error).splitlines()[0]}", flush=True)
            self._warned = True


def start_run(
    settings: Settings, manifest: Manifest, data_dir: Location, run_name: str, resumed_run: str
) -> TrackedRun:
    """Begins a run with params, tags, versions and the data set as input; or takes up `resumed_run` again.

    The database is created on first use. Raises InputError when MLflow refuses.
    """
    uri = tracking_uri()
    for name in ("alembic", "mlflow.store.db.utils"):  # they tell of every table they create
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _one_at_a_time(uri):
            client = MlflowClient(tracking_uri=uri)
            experiment = _experiment(client, settings.experiment, uri)
        if resumed_run and (run := _existing(client, resumed_run)):
            client.update_run(run, status="RUNNING")
            return TrackedRun(client, run, uri)
        run = client.create_run(experiment, run_name=run_name, tags=_tags(settings, manifest)).info.run_id
        params = {k: str(v) for k, v in flatten(to_mapping(settings)).items()}
        client.log_batch(run, params=[Param(k, v) for k, v in params.items()])
        client.log_inputs(run, [_dataset_input(manifest, data_dir)])
        client.log_text(run, manifest.to_json(), f"data/{MANIFEST_NAME}")
    except (MlflowException, OSError) as error:
        raise InputError(
            f"MLflow at {uri} refused to start a run: {str(error).splitlines()[0]}; check MLFLOW_TRACKING_URI"
        ) from error
    return TrackedRun(client, run, uri)


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Programs that meet a new SQLite database together would all create its tables and fail: they queue here."""
    if not uri.startswith("sqlite:"):
        yield
        return
    with Path(uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _existing(client: MlflowClient, run_id: str) -> str:
    try:
        return client.get_run(run_id).info.run_id
    except MlflowException:
        return ""


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


def _dataset_input(manifest: Manifest, data_dir: Location) -> DatasetInput:
    dataset = Dataset(
        name=manifest.dataset,
        digest=manifest.digest[:MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": data_dir.uri}),
        profile=json.dumps(manifest.counts),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
