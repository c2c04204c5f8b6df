"""Sweeps with a killed driver: ended trials are not run again, and the winner is the same and tested once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.sweeps import LR, Sweep, add_stage, mlflow_tree, read, trained_here
from helpers.waiting import wait_until
from mlflow import MlflowClient

from pnfrec_dist.training.run_directory import read_run
from tune.records import TRIAL, ended_and_begun, trial_name
from tune.space import Point

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

RATES, ALPHAS = [0.001, 0.01], [0.1, 0.9]


@pytest.fixture
def workspace(tmp_path: Path, prepared_writer: Callable[..., Path]) -> Path:
    prepared_writer(tmp_path / "data" / "prepared" / "tiny")
    return tmp_path


def test_a_sweep_whose_driver_is_killed_twice_ends_as_one_left_alone(workspace: Path) -> None:
    """Eight trials in the end. None that had ended runs again, and each has the same score as without Tune."""
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


def test_kills_between_stages_and_in_the_test_change_nothing(workspace: Path) -> None:
    """SIGKILL after a stage's last trial, before the next stage's first trial ended, and twice in the winner's test."""
    add_stage(workspace, "rates", LR.format(values=RATES))
    add_stage(workspace, "alphas", f"model: pnfrec_pn\nsearch: grid\nspace:\n  loss.alpha: {ALPHAS}\n")
    small = ["--epochs", "3", "--encoder.hidden-size", "8"]
    flags = ["--stages", "rates", "alphas", *small, "--max-concurrent", "1"]
    best = best_without_ray(workspace, small)
    killed = workspace / "runs/killed"
    winner = killed / "alphas" / trial_name({"loss.alpha": best["loss.alpha"]})
    sweeps: list[Sweep] = []

    def start() -> Sweep:
        sweeps.append(Sweep(workspace, *flags, "--name", "killed"))
        return sweeps[-1]

    start().kill_after(2)
    after_first = ends(killed)
    assert len(after_first) == 2 and not (killed / "rates/report").exists()

    sweep = start()
    sweep.wait_for("started   alpha")
    sweep.kill()
    assert ends(killed) == after_first and (killed / "rates/report").exists()

    sweep = start()
    sweep.wait_for("overhead")
    wait_until(lambda: not ended_as(winner))  # its test has started, in the command's own process
    sweep.kill()
    after_second = ends(killed)
    assert len(after_second) == 4 and not (winner / "result").exists()

    sweep = start()
    wait_until((winner / "result/result.json").exists)
    sweep.kill()
    assert ended_as(winner) == ""

    assert "test of the winner:" in start().succeed()
    assert ends(killed) == after_second and after_first.items() <= after_second.items()
    lines = [line for sweep in sweeps for line in sweep.output.splitlines() if line.startswith("started")]
    started = sorted(line.split(maxsplit=1)[1] for line in lines)
    assert started == ["alpha 0.1", "alpha 0.1", "alpha 0.9", "lr 0.001", "lr 0.01"]
    found = yaml.safe_load((killed / "best.yaml").read_text())
    assert {"optimizer.lr": found["optimizer"]["lr"], "loss.alpha": found["loss"]["alpha"]} == best
    require_tested_once(workspace, killed, winner)


def best_without_ray(workspace: Path, flags: list[str]) -> Point:
    """The rate with the best score, and the best alpha with that rate."""
    best: Point = {}
    for model, name, values in (("sasrec_p", "optimizer.lr", RATES), ("pnfrec_pn", "loss.alpha", ALPHAS)):
        points: list[Point] = [best | {name: value} for value in values]
        found = [
            trained_here(workspace, ["--model", model, *flags], point, workspace / f"here/{name}-{point[name]}")
            for point in points
        ]
        best = points[found.index(max(found))]
        assert found[0] != found[1]
    return best


def ended_as(run: Path) -> str:
    return read_run(run).ended


def ends(directory: Path) -> dict[str, int]:
    """Trial -> time of its end."""
    found = sorted(directory.glob(f"*/trial-*/{TRIAL}"))
    return {f"{file.parent.parent.name}/{file.parent.name}": file.stat().st_mtime_ns for file in found}


def require_tested_once(workspace: Path, directory: Path, winner: Path) -> None:
    """In the files and in MLflow, only the winner has test metrics and a model, each once."""
    assert [path.parent.parent for path in directory.glob("*/trial-*/result/result.json")] == [winner]
    assert ended_as(winner) == "finished"
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    sweep, stages = mlflow_tree(workspace, directory.name)
    trials = [trial for of_stage in stages.values() for trial in of_stage]
    assert len(trials) == 4
    assert {run.info.status for run in [sweep, *trials]} == {"FINISHED"}
    (tested,) = [trial for trial in trials if "test/hr_p_at_10" in trial.data.metrics]
    assert tested.data.tags["directory"] == str(winner)
    for run in (sweep, tested):
        assert len(client.get_metric_history(run.info.run_id, "test/hr_p_at_10")) == 1
    models = client.search_logged_models([sweep.info.experiment_id], f"source_run_id = '{tested.info.run_id}'")
    assert len(models) == 1
