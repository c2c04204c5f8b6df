"""Sweeps through the real command, on real Ray: three stages, kills of the driver, trials that crash and hang."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from recovery import ENVIRONMENT, Program

from pnfrec_dist.cli import EXIT_INTERRUPTED, parse_train_settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.events import Event
from pnfrec_dist.training.loop import Hooks, TrainLoop
from tune.records import Record, best_of, ended_and_begun, read_record
from tune.space import Point, with_point

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FLAGS = ["--dataset", "tiny", "--encoder.max-length", "5", "--train.batch-size", "8", "--seed", "3"]
LR = "model: sasrec_p\nsearch: grid\nspace:\n  optimizer.lr: {values}\n"


class Sweep(Program):
    """One tune command."""

    def __init__(self, workspace: Path, *more: str) -> None:
        super().__init__(workspace, ["tune", *FLAGS, *more], {"OMP_NUM_THREADS": "1"})

    def kill_after(self, finished: int) -> None:
        """SIGKILL to the driver as soon as so many trials have finished under it."""
        for line in self.lines():
            finished -= line.startswith("finished")
            if not finished:
                self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def succeed(self) -> str:
        """The output of a command that ends well."""
        assert self.end() == 0, self.output
        return self.output


@pytest.fixture
def workspace(tmp_path: Path, prepared_writer: Callable[..., Path]) -> Path:
    prepared_writer(tmp_path / "data" / "prepared" / "tiny")
    return tmp_path


def add_stage(workspace: Path, name: str, content: str) -> None:
    (workspace / "conf" / "tune").mkdir(parents=True, exist_ok=True)
    (workspace / "conf" / "tune" / f"{name}.yaml").write_text(content)


def trained_here(workspace: Path, settings_flags: list[str], point: Point, directory: Path) -> float:
    """The best validation score of a point, trained without Ray and without Tune."""
    settings = with_point(parse_train_settings([*FLAGS, *settings_flags]), point, "here")
    events: list[Event] = []
    data = open_prepared(workspace / "data" / "prepared" / "tiny")
    TrainLoop(settings, data, directory, World(), Hooks(events.append, lambda: False)).train()
    return max(e["metrics"]["val/ndcg_p_at_10"] for e in events if e["kind"] == "epoch")


def mlflow_tree(workspace: Path) -> tuple[Run, dict[str, list[Run]]]:
    """The sweep's run, and stage -> trials."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    below: dict[str, list[Run]] = {}
    for run in found:
        below.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    (sweep,) = [run for run in found if run.data.tags["kind"] == "sweep"]
    assert below[""] == [sweep]
    stages = below[sweep.info.run_id]
    return sweep, {stage.info.run_name or "": below.get(stage.info.run_id, []) for stage in stages}


def test_the_papers_stages_end_with_settings_that_train_takes(workspace: Path) -> None:
    """Six trials, one test; the winner trained again by train has the same score."""
    small = ["--search", "random", "--num-samples", "2", "--epochs", "2"]
    output = Sweep(workspace, *small, "--write-config", "found").succeed()
    sweep_directory = workspace / "runs" / "tune-tiny"
    assert output.count("started ") == 6 and output.count("  *best") >= 3
    assert "test of the winner:" in output

    sweep, stages = mlflow_tree(workspace)
    assert sorted(stages) == ["tune-tiny alpha", "tune-tiny beta", "tune-tiny encoder"]
    assert [len(trials) for trials in stages.values()] == [2, 2, 2]
    assert sweep.info.status == "FINISHED" and "best.yaml" in sweep.data.tags["mlflow.note.content"]
    trials = [trial for of_stage in stages.values() for trial in of_stage]
    assert all(trial.info.status == "FINISHED" and trial.data.tags["state"] == "finished" for trial in trials)
    tested = [trial for trial in trials if any(name.startswith("test") for name in trial.data.metrics)]
    assert len(tested) == 1
    assert [path.parent.parent.name for path in sweep_directory.glob("*/trial-*/result")] == ["beta"]
    assert (sweep_directory / "encoder/report/figures/parallel.png").is_file()
    assert (sweep_directory / "alpha/report/figures/alpha.png").is_file()
    assert len((sweep_directory / "beta/report/trials.csv").read_text().splitlines()) == 3
    with_checkpoints = list(sweep_directory.glob("*/trial-*/checkpoints"))
    assert len(with_checkpoints) == 3, "of each stage's best alone"

    content = (sweep_directory / "best.yaml").read_text()
    assert (workspace / "conf/train/found.yaml").read_text() == content
    found = yaml.safe_load(content)
    chosen = {name: read_best(sweep_directory / name).point for name in ("encoder", "alpha", "beta")}
    assert found["model"] == "pnfrec"
    assert found["encoder"]["hidden_size"] == chosen["encoder"]["encoder.hidden_size"]
    assert (found["loss"]["alpha"], found["loss"]["beta"]) == (
        chosen["alpha"]["loss.alpha"],
        chosen["beta"]["loss.beta"],
    )

    again = [sys.executable, "-m", "pnfrec_dist.train", "--dataset", "tiny", "--config", "found", "--num-workers", "1"]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(again, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = (workspace / "runs").glob("pnfrec-tiny-3-*/result/result.json")
    scores = [epoch["metrics"]["val/ndcg_p_at_10"] for epoch in json.loads(result.read_text())["epochs"]]
    assert max(scores) == pytest.approx(read_best(sweep_directory / "beta").best_score, abs=1e-6)

    once_more = Sweep(workspace, *small).succeed()  # a finished sweep trains and tests nothing
    assert "started " not in once_more and "none of them run now" in once_more and "epoch  " not in once_more


def read_best(stage_directory: Path) -> Record:
    best = best_of(ended_and_begun(stage_directory)[0])
    assert best is not None
    return best


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_twice_ends_as_one_left_alone(workspace: Path) -> None:
    """Eight trials in the end, none that had ended run again, each with the score it has without Tune."""
    rates = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064]
    add_stage(workspace, "rates", LR.format(values=rates))
    flags = ["--epochs", "3", "--encoder.hidden-size", "8"]
    directory, outputs = workspace / "runs" / "tune-tiny-rates" / "rates", []
    ended: list[set[str]] = []
    for finished in (2, 2, 0):
        sweep = Sweep(workspace, "--stages", "rates", *flags)
        if finished:
            sweep.kill_after(finished)
        else:
            sweep.succeed()
        outputs.append(sweep.output)
        ended.append({record.name for record in ended_and_begun(directory)[0]})
    assert [len(names) >= least for names, least in zip(ended, (2, 4, 8), strict=True)] == [True] * 3
    assert len(list(directory.glob("trial-*"))) == len(ended[-1]) == 8
    for later, before in ((outputs[1], ended[0]), (outputs[2], ended[1])):
        again = {line.split()[-1] for line in later.splitlines() if line.startswith("started")}
        points = {f"{read(directory / name).point['optimizer.lr']:.4g}" for name in before}
        assert not again & points
    scores = {}
    for rate in rates:
        point: Point = {"optimizer.lr": rate}
        scores[rate] = trained_here(workspace, ["--model", "sasrec_p", *flags], point, workspace / "here" / str(rate))
    found = {record.point["optimizer.lr"]: record.best_score for record in ended_and_begun(directory)[0]}
    assert found == pytest.approx(scores, abs=1e-6)
    winner = yaml.safe_load((workspace / "runs/tune-tiny-rates/best.yaml").read_text())["optimizer"]["lr"]
    assert scores[winner] == max(scores.values())
    _, stages = mlflow_tree(workspace)
    (trials,) = stages.values()
    assert len(trials) == 8 and all(trial.info.status == "FINISHED" for trial in trials)


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_goes_on_from_its_checkpoints(workspace: Path) -> None:
    add_stage(workspace, "rates", LR.format(values=[0.001, 0.01]))
    flags = ["--epochs", "30", "--train.patience", "30", "--encoder.hidden-size", "8"]
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    first = Sweep(workspace, "--stages", "rates", *flags, "--max-concurrent", "1")
    wait_for_epoch(directory, 0)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == EXIT_INTERRUPTED, first.output
    assert "stopped; the same command goes on" in first.output
    ended, begun = ended_and_begun(directory)
    assert not ended and len(begun) == 1
    assert list(directory.glob("trial-*/checkpoints/step-*/COMMITTED"))
    Sweep(workspace, "--stages", "rates", *flags).succeed()
    ended, begun = ended_and_begun(directory)
    assert not begun and [len(record.epochs) for record in ended] == [30, 30]
    for record in ended:
        scored = trained_here(workspace, ["--model", "sasrec_p", *flags], record.point, workspace / record.name)
        assert record.best_score == pytest.approx(scored, abs=1e-6)


@pytest.mark.slow
def test_a_time_budget_ends_with_the_best_so_far_and_the_same_command_goes_on(workspace: Path) -> None:
    """Nothing is tested before all is done; a trial that was cut off goes on from its checkpoint."""
    add_stage(workspace, "rates", LR.format(values=[0.001, 0.01]))
    flags = ["--stages", "rates", "--name", "budget", "--epochs", "400", "--train.patience", "400"]
    flags += ["--encoder.hidden-size", "8"]
    directory = workspace / "runs" / "budget" / "rates"
    output = Sweep(workspace, *flags, "--time-budget", "40s").succeed()
    assert "the time budget is used up; runs/budget/best.yaml has the best so far, untested" in output
    ended, begun = ended_and_begun(directory)
    assert not ended and len(begun) == 2
    assert not list(directory.glob("trial-*/result")) and len(list(directory.glob("trial-*/checkpoints"))) == 2
    assert yaml.safe_load((workspace / "runs/budget/best.yaml").read_text())["model"] == "sasrec_p"
    output = Sweep(workspace, *flags).succeed()
    assert "test of the winner:" in output
    ended, begun = ended_and_begun(directory)
    assert not begun and [len(record.epochs) for record in ended] == [400, 400]
    assert len(list(directory.glob("trial-*/result"))) == 1


@pytest.mark.slow
def test_optuna_with_halving_adds_trials_and_repeats_none(workspace: Path) -> None:
    """Four trials, then two more; each has its record, the stopped ones say so, one winner is tested at a time."""
    add_stage(workspace, "rates", "model: sasrec_p\nspace:\n  optimizer.lr: {low: 1e-4, high: 0.1, log: true}\n")
    flags = ["--stages", "rates", "--search", "optuna", "--scheduler", "asha", "--epochs", "30"]
    flags += ["--train.patience", "30", "--encoder.hidden-size", "8"]
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    first = Sweep(workspace, *flags, "--num-samples", "4").succeed()
    before = {record.name: record for record in ended_and_begun(directory)[0]}
    assert first.count("started ") == 4 and len(before) == 4
    assert {len(record.epochs) for record in before.values() if record.state == "finished"} == {30}
    assert all(5 <= len(record.epochs) < 30 for record in before.values() if record.state == "stopped")
    second = Sweep(workspace, *flags, "--num-samples", "6").succeed()
    after = {record.name: record for record in ended_and_begun(directory)[0]}
    assert second.count("started ") == 2 and len(after) == 6
    assert {name: after[name] for name in before} == before
    third = Sweep(workspace, *flags, "--num-samples", "6").succeed()
    assert "started " not in third and "none of them run now" in third


def read(directory: Path) -> Record:
    record = read_record(directory)
    assert record is not None
    return record


@pytest.mark.slow
def test_trials_that_crash_hang_and_diverge_are_marked_and_the_others_finish(workspace: Path) -> None:
    rates = [0.001, 0.002, 0.003, 0.004, 0.005, 1e30]
    add_stage(workspace, "rates", LR.format(values=rates))
    more = ["--stages", "rates", "--epochs", "200", "--train.patience", "200", "--encoder.hidden-size", "8"]
    limits = ["--stall-timeout", "8", "--max-failures", "0", "--max-concurrent", "1"]
    sweep = Sweep(workspace, *more, *limits)
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    left = {"lr 0.001": "crash", "lr 0.002": "hang"}
    for line in sweep.lines():
        if line.startswith("started") and (harm := left.pop(line.split("started")[1].strip(), None)):
            wait_for_epoch(directory, len(list(directory.glob("trial-*/trial.json"))))
            if harm == "crash":
                only_process(sweep, "Trainable").kill()
            else:
                only_process(sweep, "RayTrainWorker").suspend()
    assert sweep.process.wait(60) == 0, sweep.output
    ended = {record.point["optimizer.lr"]: record for record in ended_and_begun(directory)[0]}
    assert {rate: record.state for rate, record in ended.items()} == {
        0.001: "failed",
        0.002: "failed",
        0.003: "finished",
        0.004: "finished",
        0.005: "finished",
        1e30: "failed",
    }
    assert "process died" in ended[0.001].reason
    assert "workers failed" in ended[0.002].reason
    assert "not finite" in ended[1e30].reason
    _, stages = mlflow_tree(workspace)
    (trials,) = stages.values()
    states = {float(trial.data.params["optimizer.lr"]): trial for trial in trials}
    assert {states[rate].info.status for rate in (0.001, 0.002, 1e30)} == {"FAILED"}
    assert {states[rate].info.status for rate in (0.003, 0.004, 0.005)} == {"FINISHED"}


def only_process(sweep: Sweep, pattern: str) -> psutil.Process:
    """Ray changes the titles of its processes as they go."""
    deadline, found = time.monotonic() + 20, list[psutil.Process]()
    while time.monotonic() < deadline and len(found) != 1:
        found = sweep.processes(pattern)
    (process,) = found
    return process


def wait_for_epoch(directory: Path, ended: int) -> None:
    """Until the trial that runs now has told MLflow's spool of an epoch."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        running = [d for d in directory.glob("trial-*") if not (d / "trial.json").exists()]
        for one in running:
            records = one / "tracking.jsonl"
            if records.exists() and '"epoch/1"' in records.read_text():
                return
        time.sleep(0.05)
    raise AssertionError(f"no trial has come to an epoch ({ended} ended)")
