"""Files of version 0.1.0 are opened by today's commands, with the same results.

tests/fixtures/files_of_0_1.tar.xz holds, of made-up data: prepared/tiny, runs/pnfrec (three epochs of four steps, its
checkpoints after steps 4, 6 and 12, its result and logged model), and the results of that version's commands:
lists/ by recommend, evaluated.json by evaluate, served.json by the served model.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import called
from helpers.served import serving
from safetensors.torch import load_file

from pnfrec_dist import recommend
from pnfrec_dist.data.prepared import TRAINING_PARTS, open_prepared
from pnfrec_dist.data.schema import USERS
from pnfrec_dist.evaluate import main as evaluate_command
from pnfrec_dist.train import main as train_command
from pnfrec_dist.training.checkpoint import STATE, read_state
from pnfrec_dist.training.result import read_result, read_test_users

pytestmark = pytest.mark.integration

FILES = Path(__file__).parents[1] / "fixtures" / "files_of_0_1.tar.xz"
SETTINGS = {
    "--dataset": "tiny",
    "--model": "pnfrec",
    "--data-dir": "prepared",
    "--num-workers": "1",
    "--epochs": "3",
    "--train.batch-size": "16",
    "--encoder.hidden-size": "8",
    "--encoder.max-length": "6",
    "--encoder.num-blocks": "1",
    "--checkpoint.keep": "30",
    "--evaluation.select-on": "last",
}


def near(expected: Any) -> Any:
    """Tolerates another order of sums on another processor."""
    return pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def content(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_prepared_data_and_the_result_are_read(files: Path) -> None:
    data = open_prepared(files / "prepared/tiny").require_whole(*TRAINING_PARTS, USERS)
    result = read_result(files / "runs/pnfrec")
    assert result is not None and result.data_digest == data.manifest.digest
    assert [epoch.epoch for epoch in result.epochs] == [1, 2, 3] and result.best_epoch == 3
    assert result.epochs[0].metrics["train/ce_positive"] > 0
    assert len(read_test_users(files / "runs/pnfrec").target_is_positive) == 10


def test_evaluate_gives_the_same_figures(files: Path) -> None:
    flags = ["--run", "runs/pnfrec/checkpoints/step-000000012", "--data-dir", "prepared", "--few", "3"]
    called(evaluate_command, files, *flags, "--out", "now.json")
    now, before = content(files / "now.json"), content(files / "evaluated.json")
    assert now["best_gamma"] == before["best_gamma"]
    assert now["validation"] == near(before["validation"])
    for gamma, groups in before["test"].items():
        for group, metrics in groups.items():
            assert now["test"][gamma][group] == near(metrics)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("model", ["runs/pnfrec", "runs/pnfrec/checkpoints/step-000000012"])
def test_recommend_makes_the_same_lists(files: Path, model: str) -> None:
    flags = ["--run", model, "--data-dir", "prepared", "--top-k", "5", "--gamma", "0.3", "--num-workers", "1"]
    called(recommend.main, files, *flags, "--out", "now")
    now, before = (pq.read_table(files / name).to_pydict() for name in ("now", "lists"))
    assert now.pop("score") == near(before.pop("score"))
    assert now == before


def test_the_logged_model_is_served(files: Path) -> None:
    """With the code that the model contains."""
    told = content(files / "served.json")
    with serving(files / "runs/pnfrec") as served:
        status, answer = served.ask({"inputs": told["queries"]})
    assert status == 200
    for now, before in zip(answer["predictions"], told["answers"], strict=True):
        assert now.pop("scores") == near(before.pop("scores"))
        assert now == before


@pytest.mark.usefixtures("ray_here")
def test_a_training_goes_on_from_the_middle_of_an_epoch(files: Path) -> None:
    """It ends with the same result as in version 0.1.0."""
    flags = [part for pair in SETTINGS.items() for part in pair]
    run = files / "runs/pnfrec"
    then = {name: load_file(run / "checkpoints/step-000000012" / name) for name in ("model.safetensors",)}
    expected = content(run / "checkpoints/step-000000012" / STATE)
    said = called(train_command, files, *flags, "--resume", "runs/pnfrec/checkpoints/step-000000006")
    assert "in epoch 2 after step 2" in said
    state = read_state(run / "checkpoints/step-000000012")
    assert state["format_version"] == expected["format_version"] + 1
    for name, tensors in then.items():
        now = load_file(run / "checkpoints/step-000000012" / name)
        assert now.keys() == tensors.keys()
        for key, value in tensors.items():
            torch.testing.assert_close(now[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for now, before in zip(state["epochs"], expected["epochs"], strict=True):
        found = {name: value for name, value in now["metrics"].items() if name != "train/users_per_s"}
        assert found == near({name: before["metrics"][name] for name in found})
