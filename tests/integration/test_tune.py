"""Sweeps through the real command, on real Ray: three stages, stops, budgets, trials that crash and hang."""

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.commands import called, started
from helpers.sweeps import (
    FLAGS,
    LR,
    Sweep,
    add_stage,
    mlflow_tree,
    only_process,
    read_best,
    score_here,
    trained_here,
    wait_for_epoch,
)
from helpers.waiting import wait_until
from mlflow import MlflowClient

from pnfrec_dist.cli import EXIT_INTERRUPTED, parse_train_settings
from pnfrec_dist.train import main as train_command
from tune import __main__ as tune
from tune.records import ended_and_begun

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


FLAKY = """
from pathlib import Path
from pnfrec_dist.evaluation.metrics import ndcg

def flaky(ranks, k):
    if len(ranks) > 6:  # in training, not in the check of the settings
        for mark in Path(__file__).parent.glob("fail-*"):
            mark.unlink()
            raise OSError("the disk is gone")
    return ndcg(ranks, k)
"""


@pytest.fixture
def workspace(tmp_path: Path, prepared_writer: Callable[..., Path]) -> Path:
    prepared_writer(tmp_path / "data" / "prepared" / "tiny")
    return tmp_path


def train_found(workspace: Path, config: str, workers: int) -> float:
    """The best validation score of a training with settings that were found."""
    again = ["--num-workers", str(workers), "--output-dir", "again"]
    called(train_command, workspace, "--dataset", "tiny", "--config", config, *again)
    (result,) = (workspace / "again").glob("*/result/result.json")
    found = json.loads(result.read_text())
    assert found["num_workers"] == workers
    return max(epoch["metrics"]["val/ndcg_p_at_10"] for epoch in found["epochs"])


@pytest.mark.usefixtures("ray_here")
def test_the_papers_stages_end_with_settings_that_train_takes(
    workspace: Path, empty_mlflow: Callable[[Path], str]
) -> None:
    """Six trials, one test. The train command gives the same score for the winner's settings."""
    empty_mlflow(workspace)
    small = ["--search", "random", "--num-samples", "2", "--epochs", "2", "--max-concurrent", "1"]
    output = called(tune.main, workspace, *FLAGS, *small, "--write-config", "found")
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

    with contextlib.chdir(workspace):
        taken = parse_train_settings(["--dataset", "tiny", "--config", "found"])
    again = score_here(workspace, taken, workspace / "again")
    assert again == pytest.approx(read_best(sweep_directory / "beta").best_score, abs=1e-6)

    once_more = called(tune.main, workspace, *FLAGS, *small)  # a finished sweep trains and tests nothing
    assert (
        "started " not in once_more and "none of them run by this command" in once_more and "epoch  " not in once_more
    )
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    assert len(client.get_metric_history(sweep.info.run_id, "test/ndcg_p_at_10")) == 1


def test_what_no_sweep_can_be_is_said_in_a_line(workspace: Path) -> None:
    done = started(workspace, "tune", *FLAGS, "--stages", "nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_trials_of_two_workers_score_as_a_training_with_two(workspace: Path) -> None:
    add_stage(workspace, "rates", LR.format(values=[0.001, 0.01]))
    flags = ["--stages", "rates", "--epochs", "3", "--encoder.hidden-size", "8", "--workers-per-trial", "2"]
    output = Sweep(workspace, *flags, "--max-concurrent", "1").succeed()
    assert "trials: one trial at a time, each with 2 workers" in output
    assert "workers failed" not in output and output.count("finished ") == 2
    directory = workspace / "runs/tune-tiny-rates"
    again = train_found(workspace, str(directory / "best.yaml"), workers=2)
    assert again == pytest.approx(read_best(directory / "rates").best_score, abs=1e-6)


@pytest.mark.slow
def test_a_sweep_that_is_told_to_stop_goes_on_from_its_checkpoints(workspace: Path) -> None:
    add_stage(workspace, "rates", LR.format(values=[0.001, 0.01]))
    flags = ["--epochs", "30", "--train.patience", "30", "--encoder.hidden-size", "8"]
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    first = Sweep(workspace, "--stages", "rates", *flags, "--max-concurrent", "1")
    wait_for_epoch(directory)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == EXIT_INTERRUPTED, first.output
    assert "stopped; run the same command again to continue" in first.output
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
def test_what_stops_in_a_long_epoch_leaves_a_checkpoint_of_its_step(
    tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    """Stopped by a signal, and by the time budget. An epoch takes longer than Ray Tune would wait for a trial."""
    prepared_writer(tmp_path / "data/prepared/tiny", users=80_000)
    add_stage(tmp_path, "rates", LR.format(values=[0.001]))
    flags = ["--stages", "rates", "--epochs", "1", "--encoder.hidden-size", "8", "--checkpoint.every-steps", "500"]

    def steps() -> list[int]:
        found = (tmp_path / "runs").glob("*/rates/trial-*/checkpoints/step-*/COMMITTED")
        return sorted(int(file.parent.name.removeprefix("step-")) for file in found)

    first = Sweep(tmp_path, *flags)
    wait_until(steps)
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == EXIT_INTERRUPTED, first.output
    stopped_at = steps()[-1]
    assert stopped_at % 500 and stopped_at < 10_000
    output = Sweep(tmp_path, *flags, "--time-budget", "30s").succeed()
    assert "the time budget is used up; no trial has a score yet" in output
    assert steps()[-1] > stopped_at and steps()[-1] % 500
    _, stages = mlflow_tree(tmp_path)
    ((trial,),) = stages.values()
    assert (trial.info.status, trial.data.tags["state"]) == ("KILLED", "stopped")


@pytest.mark.slow
def test_a_time_budget_ends_with_the_best_so_far_and_the_same_command_goes_on(workspace: Path) -> None:
    """Nothing is tested before all trials ended. An interrupted trial continues from its checkpoint."""
    add_stage(workspace, "rates", LR.format(values=[0.001, 0.01]))
    flags = ["--stages", "rates", "--name", "budget", "--epochs", "400", "--train.patience", "400"]
    flags += ["--encoder.hidden-size", "8", "--train.batch-size", "1"]  # 30 steps an epoch
    directory = workspace / "runs" / "budget" / "rates"
    output = Sweep(workspace, *flags, "--time-budget", "40s").succeed()
    assert "the time budget is used up; runs/budget/best.yaml has the best so far, not tested" in output
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
    """Four trials, then two more. Each has a record, also those that were stopped; each command tests one winner."""
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
    assert "started " not in third and "none of them run by this command" in third


@pytest.mark.slow
def test_trials_that_crash_hang_and_diverge_are_marked_and_the_next_one_finishes(workspace: Path) -> None:
    rates = [0.001, 0.002, 1e30, 0.003]
    add_stage(workspace, "rates", LR.format(values=rates))
    more = ["--stages", "rates", "--epochs", "200", "--train.patience", "200", "--encoder.hidden-size", "8"]
    limits = ["--stall-timeout", "25", "--max-failures", "0", "--max-concurrent", "1"]
    sweep = Sweep(workspace, *more, *limits)
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    left = {"lr 0.001": "crash", "lr 0.002": "hang"}
    for line in sweep.lines():
        if line.startswith("started") and (harm := left.pop(line.split("started")[1].strip(), None)):
            wait_for_epoch(directory)
            process = only_process(sweep, "Trainable")
            process.kill() if harm == "crash" else process.suspend()
    assert sweep.process.wait(60) == 0, sweep.output
    ended = {record.point["optimizer.lr"]: record for record in ended_and_begun(directory)[0]}
    assert {rate: record.state for rate, record in ended.items()} == {
        0.001: "failed",
        0.002: "failed",
        1e30: "failed",
        0.003: "finished",
    }
    _, stages = mlflow_tree(workspace)
    (trials,) = stages.values()
    states = {float(trial.data.params["optimizer.lr"]): trial for trial in trials}
    table = (directory / "report/stage.md").read_text()
    for rate, reason in ((0.001, "process died"), (0.002, "no progress for"), (1e30, "not finite")):
        assert reason in ended[rate].reason and f"- lr {rate:.4g}: {ended[rate].reason}" in table
        assert states[rate].info.status == "FAILED" and states[rate].data.tags["state"] == "failed"
        assert reason in states[rate].data.tags["reason"]
    assert (states[0.003].info.status, states[0.003].data.tags["reason"]) == ("FINISHED", "")


@pytest.mark.slow
def test_a_trial_whose_process_dies_goes_on_from_its_checkpoint(workspace: Path) -> None:
    add_stage(workspace, "rates", LR.format(values=[0.001]))
    flags = ["--epochs", "30", "--train.patience", "30", "--encoder.hidden-size", "8"]
    directory = workspace / "runs" / "tune-tiny-rates" / "rates"
    sweep = Sweep(workspace, "--stages", "rates", *flags)
    wait_for_epoch(directory)
    only_process(sweep, "Trainable").kill()
    sweep.succeed()
    ((record,), begun) = ended_and_begun(directory)
    assert not begun and record.state == "finished" and len(record.epochs) == 30
    scored = trained_here(workspace, ["--model", "sasrec_p", *flags], record.point, workspace / record.name)
    assert record.best_score == pytest.approx(scored, abs=1e-6)
    _, stages = mlflow_tree(workspace)
    ((trial,),) = stages.values()
    assert (trial.info.status, trial.data.tags["state"]) == ("FINISHED", "finished")


@pytest.mark.slow
def test_a_trial_whose_worker_fails_of_an_unexpected_error_starts_again(workspace: Path) -> None:
    """A user's own measure fails in the first validation. If it fails too often, the error is reported unchanged."""
    (workspace / "own.py").write_text(FLAKY)
    add_stage(workspace, "rates", LR.format(values=[0.001]))
    flags = ["--stages", "rates", "--epochs", "2", "--encoder.hidden-size", "8"]
    flags += ["--evaluation.measures", "hr", "ndcg", "own:flaky"]
    (workspace / "fail-1").touch()
    output = Sweep(workspace, *flags).succeed()
    assert "restarted lr 0.001: the training failed: OSError: the disk is gone" in output
    assert "finished  lr 0.001" in output and "test of the winner:" in output
    (workspace / "fail-2").touch()
    sweep = Sweep(workspace, *flags, "--name", "other", "--max-failures", "0")
    assert sweep.end() == 1
    assert "failed    lr 0.001: no score" in sweep.output and "OSError: the disk is gone" in sweep.output
