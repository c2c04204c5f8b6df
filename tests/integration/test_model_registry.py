"""Registered models: which one gets the alias best, and a model that is registered before it was sent."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.waiting import wait_until
from mlflow import MlflowClient
from mlflow.models import Model

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.tracking import __main__ as flush
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FINISHED, SCORE_TAG
from pnfrec_dist.training.run_directory import Run

pytestmark = pytest.mark.integration


@pytest.fixture
def data(prepared: Path) -> PreparedData:
    return open_prepared(prepared)


def trained_with_model(directory: Path, data: PreparedData, uri: str) -> Run:
    """A run that has logged its model, with a name that MLflow does not accept unchanged."""
    run = Run(directory, {}, data.manifest.digest)
    run.write()
    tracked = TrackedRun(run.directory, run.key, uri, print)
    tracked.start(opening_of_training(Settings(dataset="tiny"), data.manifest, data.directory))
    (directory / "model").mkdir()
    Model().save(str(directory / "model" / "MLmodel"))
    tracked.log_metrics("test/1", {"test/ndcg_p_at_10": 0.5}, 1)
    tracked.log_model("model/1", directory / "model", {"model": "my.model", "dataset": "my-data"}, 1, "test/1")
    tracked.close(FINISHED)
    assert not tracked.spool.unsent
    return run


def test_the_alias_best_goes_to_what_validated_best_on_the_same_data(
    tmp_path: Path, data: PreparedData, empty_mlflow: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = empty_mlflow(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    parent = Run(tmp_path / "runs", {"reproduces": "tiny"}, data.manifest.digest)
    parent.write()
    tracked = TrackedRun(parent.directory, parent.key, uri, print)
    tracked.start(opening_of_training(Settings(dataset="tiny"), data.manifest, data.directory))
    client, holders = MlflowClient(uri), []
    trained = [trained_with_model(tmp_path / "runs" / str(number), data, uri) for number in range(4)]
    for number, (score, digest) in enumerate([(0.5, "a"), (0.3, "a"), (0.7, "a"), (0.1, "b")]):
        tags = {"data_digest": digest, SCORE_TAG: repr(score)}
        tracked.register(f"best/{number}", trained[number].key, "registered", "text", tags)
        wait_until(lambda: not tracked.spool.unsent)
        holders.append(client.get_model_version_by_alias("registered", "best").run_id)
    tracked.close(FINISHED)
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    ids = {run.data.tags["pnfrec.run"]: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert holders == [ids[trained[number].key] for number in (0, 0, 2, 3)]
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.name for model in models} == {"my-model-my-data"}
    assert all(model.tags["model"] == "my.model" and model.metrics for model in models)


def test_a_flush_registers_a_model_that_it_sends_later(
    tmp_path: Path,
    data: PreparedData,
    empty_mlflow: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing of a parent and its training was sent yet. The parent's last records wait for the training's model."""
    parent = Run(tmp_path / "runs" / "parent", {"reproduces": "tiny"}, data.manifest.digest)
    child = Run(parent.directory / "child", {}, data.manifest.digest)
    for run in (parent, child):
        run.write()
    outer, inner = (TrackedRun(run.directory, run.key, "http://127.0.0.1:9", print) for run in (parent, child))
    outer.keep(opening_of_training(Settings(dataset="tiny"), data.manifest, data.directory))
    inner.keep(opening_of_training(Settings(dataset="tiny"), data.manifest, data.directory, parent=parent.key))
    (child.directory / "model").mkdir()
    Model().save(str(child.directory / "model" / "MLmodel"))
    inner.log_metrics("test/1", {"test/ndcg_p_at_10": 0.5}, 1)
    inner.log_model("model/1", child.directory / "model", {"model": "m", "dataset": "tiny"}, 1, "test/1")
    outer.register("best/0", child.key, "registered", "text", {"data_digest": "a", SCORE_TAG: "0.5"})
    for tracked in (outer, inner):
        tracked.add("status/9", "status", status=FINISHED)

    uri = empty_mlflow(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert flush.main(["flush", "--output-dir", str(tmp_path / "runs")]) == 0
    assert "is gone" not in capsys.readouterr().out
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    runs = {run.data.tags["pnfrec.run"]: run for run in client.search_runs([experiment.experiment_id])}
    assert all(run.info.status == FINISHED for run in runs.values())
    assert runs[child.key].data.tags["mlflow.parentRunId"] == runs[parent.key].info.run_id
    assert client.get_model_version_by_alias("registered", "best").run_id == runs[child.key].info.run_id
