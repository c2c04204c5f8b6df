"""Sends a run's records to MLflow. Sending a record twice changes nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.models import Model

from pnfrec_dist.data.schema import MANIFEST_NAME
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locks import held
from pnfrec_dist.tracking.logged_models import KEY_TAG, models_of, registered_version, run_of_key
from pnfrec_dist.tracking.spool import RUNNING, SCORE_TAG, Record, Spool

MODEL_KEY_TAG = "pnfrec.model"
"""As KEY_TAG, for a logged model."""


class NotYetError(Exception):
    """This record is about another run or its model, which MLflow does not have yet."""


class Sender:
    """Sends the records of a spool in order. A record that was sent in part or got no answer may be sent again."""

    def __init__(self, spool: Spool, key: str, uri: str) -> None:
        self.spool, self.key, self.uri = spool, key, uri
        self.run_id = ""
        self.missing: list[str] = []
        """directories to be sent that are gone"""
        self._client: MlflowClient | None = None

    def send_next(self) -> None:
        """Sends one record, if there is one. Raises InputError if MLflow refuses it, other errors if MLflow fails."""
        record = self.spool.next()
        if record is None:
            return
        client = self._client
        if client is None or not self.run_id:
            with _one_at_a_time(self.uri):
                client = self._client = client or MlflowClient(tracking_uri=self.uri)
                self.run_id = self.run_id or self._find(client)
            if not self.run_id and self.spool.sent:  # another server than last time: it gets all records
                self.spool.mark_sent(0)
                return
        _SEND[record["kind"]](self, client, record)
        self.spool.mark_sent(self.spool.sent + 1)

    def _find(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self.spool.records[0]["experiment"])
        if experiment is None or experiment.lifecycle_stage == "deleted":
            return ""
        return run_of_key(client, experiment.experiment_id, self.key)

    def _parent(self, client: MlflowClient, experiment: str, key: str) -> str:
        if run_id := run_of_key(client, experiment, key):
            return run_id
        raise NotYetError("this run is part of another one that was not sent yet; send that one first")

    def _start(self, client: MlflowClient, record: Record) -> None:
        with _one_at_a_time(self.uri):
            experiment = _experiment(client, record["experiment"], self.uri)
        if not self.run_id:
            tags = {KEY_TAG: self.key, **record["tags"]}
            if parent := record.get("parent"):  # records of earlier versions have none
                tags["mlflow.parentRunId"] = self._parent(client, experiment, parent)
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

    def _model(self, client: MlflowClient, record: Record) -> None:
        """Logs a model of this run with its metrics, as a logged model and not as a folder of artifacts."""
        directory = self.spool.directory / record["directory"]
        if not directory.is_dir():
            self.missing.append(str(directory))
            return
        experiment = client.get_run(self.run_id).info.experiment_id
        tags = {MODEL_KEY_TAG: record["key"], **record["tags"]}
        found = [m for m in models_of(client, experiment, self.run_id) if m.tags.get(MODEL_KEY_TAG) == record["key"]]
        model = found[0] if found else client.create_logged_model(experiment, record["name"], self.run_id, tags)
        described = Model.load(str(directory))
        described.run_id, described.model_id = self.run_id, model.model_id
        described.artifact_path = model.artifact_location
        described.save(str(directory / "MLmodel"))
        client.log_model_artifacts(model.model_id, str(directory))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, record["step"])])
        for told in self.spool.records:
            if told["key"] == record["metrics"]:  # the same points and times: the run has them once
                at, step = told["at"], told["step"]
                of_model = [Metric(n, v, at, step, model_id=model.model_id) for n, v in told["metrics"].items()]
                client.log_batch(self.run_id, of_model)

    def _register(self, client: MlflowClient, record: Record) -> None:
        """Registers a run's model as a version of a registered model. It gets the alias "best" unless the version that
        has the alias is of the same data and has at least the same validation score."""
        experiment = client.get_run(self.run_id).info.experiment_id
        run_id = run_of_key(client, experiment, record["run"])
        models = models_of(client, experiment, run_id) if run_id else []
        if not models:
            raise NotYetError("the model to be registered was not sent yet; send its run first")
        name, tags = record["name"], record["tags"]
        version = registered_version(client, name, models[0], tags, record["description"])
        aliases = client.get_registered_model(name).aliases
        holder = client.get_model_version(name, aliases["best"]).tags if "best" in aliases else {}
        if holder.get("data_digest") != tags["data_digest"] or float(holder[SCORE_TAG]) < float(tags[SCORE_TAG]):
            client.set_registered_model_alias(name, "best", version.version)

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
    "model": Sender._model,
    "register": Sender._register,
    "status": Sender._status,
}


def _one_at_a_time(uri: str) -> AbstractContextManager[object]:
    """A lock. Programs that open a new SQLite database together would all create its tables and fail."""
    if not uri.startswith("sqlite:"):
        return nullcontext()
    return held(Path(uri.removeprefix("sqlite:///") + ".lock"), wait=True)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(f"the MLflow experiment {name!r} was deleted; restore it or choose another --experiment")
        return found.experiment_id
    artifacts = Path("mlartifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=artifacts)
