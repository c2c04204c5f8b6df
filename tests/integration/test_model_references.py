"""A trained model found in MLflow: by run, by version, by alias, by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_training import SETTINGS, trained
from mlflow import MlflowClient

from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FINISHED, SCORE_TAG
from pnfrec_dist.training.run_directory import Run

pytestmark = pytest.mark.integration


def logged(directory: Path, data: PreparedData, uri: str, seed: int, *, with_model: bool = True) -> TrackedRun:
    """A training in MLflow that is registered as `lists`. A higher seed gives a better score."""
    settings = replace(SETTINGS, seed=seed)
    run = Run(directory / f"run-{seed}", {}, data.manifest.digest)
    run.write()
    tracked = TrackedRun(run.directory, run.key, uri, print)
    tracked.start(opening_of_training(settings, data.manifest, data.directory))
    if with_model:
        checkpoint = trained(data, settings, run.directory)
        save_model(run.directory / "model", of_checkpoint(checkpoint, settings, data))
        tracked.log_metrics("test/1", {"test/ndcg_p_at_10": 0.5}, 1)
        tags = {"model": settings.model, "dataset": settings.dataset}
        tracked.log_model("model/1", run.directory / "model", tags, 1, "test/1")
        about = {"data_digest": data.manifest.digest, SCORE_TAG: repr(0.1 * seed)}
        tracked.register("best", run.key, "lists", "text", about)
    tracked.close(FINISHED)
    assert not tracked.spool.unsent
    return tracked


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_a_model_is_found_by_every_name_it_has(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepared_writer: Callable[..., Path],
    empty_mlflow: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = open_prepared(prepared_writer(tmp_path / "prepared" / "tiny"))
    uri = empty_mlflow(tmp_path) if kind == "sqlite" else f"http://127.0.0.1:{request.getfixturevalue('server')}"
    check_names(tmp_path, data, uri, monkeypatch)


def check_names(directory: Path, data: PreparedData, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ids = [logged(directory, data, uri, seed).run_id for seed in (2, 3, 1)]
    client = MlflowClient(uri)

    def seed_of(reference: str) -> int:
        return open_trained(reference, "nowhere").settings.seed

    assert [seed_of(name) for name in (ids[0], f"runs:/{ids[1]}", "models:/lists/3")] == [2, 3, 1]
    assert [seed_of(name) for name in ("lists", "models:/lists", "models:/lists@best")] == [3, 3, 3]
    assert seed_of(str(client.get_model_version("lists", "1").source)) == 2, "models:/<id of a logged model>"
    client.delete_registered_model_alias("lists", "best")
    assert seed_of("lists") == 1, "the newest, where none is called best"

    without = logged(directory, data, uri, 4, with_model=False).run_id
    for reference, message in {
        "list": "no model 'list' is registered .*did you mean 'lists'",
        "models:/lists/9": "gives no model 'models:/lists/9' .*; name another one",
        "models:/lists@first": "no alias 'first' .*; it has no alias",
        "models:/a/b/c": "names no model; write",
        "0" * 32: "gives no model '0+' .*; name another one",
        without: "has no model; name a run that was trained to its end",
    }.items():
        with pytest.raises(InputError, match=message):
            open_trained(reference, "nowhere")


def test_an_mlflow_that_is_not_there_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"there is no MLflow database at sqlite:///.*set MLFLOW_TRACKING_URI"):
        open_trained("lists", "nowhere")
    assert not list(tmp_path.iterdir()), "no database was made"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:9 gives no model 'lists' .*check"):
        open_trained("lists", "nowhere")
