"""The reproduce command with several trainings at a time: the same results as in turn, however it is interrupted."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.commands import called
from helpers.recovery import Program
from helpers.waiting import wait_until
from mlflow import MlflowClient

from pnfrec_dist import reproduce
from pnfrec_dist.cluster.worker_plan import Node

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TWO = ["--dataset", "tiny", "--models", "sasrec_p", "sasrec_c", "--num-workers", "1", "--encoder.hidden-size", "8"]
TWO += ["--encoder.max-length", "5", "--train.batch-size", "8"]
SHORT = [*TWO, "--seeds", "2", "--epochs", "2"]
LONG = [*TWO, "--seeds", "1", "--epochs", "30", "--train.patience", "30"]
BROKEN = """
from pnfrec_dist.evaluation.metrics import ndcg

def broken(ranks, k):
    if len(ranks) == 8:
        raise OSError("the disk is gone")
    return ndcg(ranks, k)
"""
"""A measure that fails on the 8 validation users."""


@pytest.fixture
def workspace(tmp_path: Path, prepared_writer: Callable[..., Path], empty_mlflow: Callable[[Path], str]) -> Path:
    prepared_writer(tmp_path / "data" / "prepared" / "tiny")
    empty_mlflow(tmp_path)
    return tmp_path


def results(directory: Path) -> dict[tuple[str, int], Any]:
    """(model, seed) -> test metrics, and those of every epoch."""
    found = {}
    for file in directory.glob("*/result/result.json"):
        result = json.loads(file.read_text())
        epochs = [{k: v for k, v in e["metrics"].items() if k != "train/users_per_s"} for e in result["epochs"]]
        metrics = {f"{name}/{number}": value for number, e in enumerate(epochs) for name, value in e.items()}
        key = result["settings"]["model"], result["settings"]["seed"]
        assert key not in found, "each training has one run with a result"
        found[key] = metrics | result["test"]
    return found


def require_same(one: Path, other: Path, count: int) -> None:
    found = results(one)
    assert len(found) == count and found == results(other)


def trained_in_turn(workspace: Path, *flags: str) -> str:
    """With one thread, as each of two at a time has on two cores: more threads round in another way."""
    with mock.patch("pnfrec_dist.cluster.session.this_machine", lambda _: Node(1)):
        return called(reproduce.main, workspace, *flags, "--name", "one")


def children(workspace: Path, name: str) -> list[str]:
    """The status of each training of a reproduction in MLflow."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == name]
    return [r.info.status for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.mark.usefixtures("ray_here")
def test_two_at_a_time_give_the_results_of_one_at_a_time(workspace: Path) -> None:
    in_turn = trained_in_turn(workspace, *SHORT, "--at-a-time", "1")
    output = called(reproduce.main, workspace, *SHORT, "--at-a-time", "2", "--name", "two")
    require_same(workspace / "runs/one", workspace / "runs/two", 4)
    assert "trainings: 2 trainings at a time, each with 1 worker, 1 CPU" in output
    assert "epoch   1/2" in in_turn and "epoch   1/2" not in output, "it is in the file of each training"
    logs = list((workspace / "runs/two").glob("*/training.log"))
    assert len(logs) == 4 and all("epoch   2/2" in log.read_text() for log in logs)
    lines = [line for line in output.splitlines() if line.startswith("[")]
    for number in range(1, 5):
        began, ended = (line for line in lines if line.startswith(f"[{number}/4] "))
        assert began.endswith(": started") and re.search(r"seed \d: test, epoch \d: HR_p@10 \d\.\d{4}  ", ended)
    assert lines[0].startswith("[1/4]") and lines[1].startswith("[2/4]"), "two start at once"
    assert re.search(r"\(\d+s so far, about \d+s left\)$", next(line for line in lines if "test, " in line))
    assert "trainings with a result: 4 of 4" in output
    assert children(workspace, "two") == ["FINISHED"] * 4
    again = called(reproduce.main, workspace, *SHORT, "--at-a-time", "2", "--name", "two")
    assert "started" not in again and "trainings with a result: 4 of 4" in again


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    """A reproduction whose trainings ran in turn, without an interruption."""
    directory = tmp_path_factory.mktemp("in-turn")
    prepared_writer(directory / "data" / "prepared" / "tiny")
    trained_in_turn(directory, *LONG)
    return directory / "runs" / "one"


def begun(workspace: Path) -> bool:
    """Whether both trainings have told the end of their third epoch."""
    logs = [log.read_text() for log in (workspace / "runs/two").glob("*/training.log")]
    return sum("epoch   3/30" in log for log in logs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["stop", "kill", "kill one"])
def test_what_is_interrupted_goes_on_with_the_same_command(workspace: Path, in_turn: Path, harm: str) -> None:
    """A signal to the command, its sudden death, and that of one training's process."""
    command = ["pnfrec_dist.reproduce", *LONG, "--at-a-time", "2", "--name", "two"]
    first = Program(workspace, command, {"OMP_NUM_THREADS": "1"})
    wait_until(lambda: begun(workspace), unless=lambda: first.process.poll() is not None)
    if harm == "kill one":
        first.processes("TrainingActor")[0].kill()
        assert first.end() == 1, first.output
        assert "its process died; it may lack memory; run the same command again" in first.output
        assert "trainings with a result: 1 of 2" in first.output
    else:
        first.process.send_signal(signal.SIGTERM if harm == "stop" else signal.SIGKILL)
        assert first.end() == (130 if harm == "stop" else -signal.SIGKILL), first.output
    if harm == "stop":
        assert first.output.count(": stopped, with a checkpoint") == 2
        assert children(workspace, "two") == ["KILLED"] * 2
    then = Program(workspace, command, {"OMP_NUM_THREADS": "1"})
    assert then.end() == 0 and "trainings with a result: 2 of 2" in then.output, then.output
    assert len(list((workspace / "runs/two").glob("*/run.json"))) == 2, "no training started anew"
    logs = [log.read_text() for log in (workspace / "runs/two").glob("*/training.log")]
    assert sum("continuing " in log for log in logs) == (1 if harm == "kill one" else 2)
    assert children(workspace, "two") == ["FINISHED"] * 2
    require_same(in_turn, workspace / "runs/two", 2)


@pytest.mark.slow
def test_a_training_that_fails_does_not_stop_the_others(workspace: Path) -> None:
    (workspace / "own.py").write_text(BROKEN)
    flags = ["--evaluation.measures", "hr", "ndcg", "own:broken", "--at-a-time", "2"]
    done = Program(workspace, ["pnfrec_dist.reproduce", *SHORT, *flags], {})
    assert done.end() == 1
    assert done.output.count("warning: ") == 4 and done.output.count("OSError: the disk is gone") >= 4, done.output
    assert "4 of 4 trainings failed" in done.output and "Traceback" not in done.output
