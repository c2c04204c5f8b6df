"""Sweeps that are started as a user starts them, and their results."""

import signal
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from helpers.recovery import Program
from helpers.waiting import wait_until
from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.tracking.spool import RECORDS
from pnfrec_dist.training.events import EpochDone, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop
from tune.records import TRIAL, Record, best_of, ended_and_begun, read_record
from tune.space import Point, with_point

FLAGS = ["--dataset", "tiny", "--encoder.max-length", "5", "--train.batch-size", "8", "--seed", "3"]
LR = "model: sasrec_p\nsearch: grid\nspace:\n  optimizer.lr: {values}\n"


class Sweep(Program):
    """One tune command."""

    def __init__(self, workspace: Path, *more: str, **environment: str) -> None:
        super().__init__(workspace, ["tune", *FLAGS, *more], {"OMP_NUM_THREADS": "1"} | environment)

    def kill_after(self, finished: int) -> None:
        """Sends SIGKILL to the driver when this many trials have finished."""
        for line in self.lines():
            finished -= line.startswith("finished")
            if not finished:
                self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def succeed(self) -> str:
        """Waits for the end, which must be a success; returns the output."""
        assert self.end() == 0, self.output
        return self.output


def add_stage(workspace: Path, name: str, content: str) -> None:
    (workspace / "conf" / "tune").mkdir(parents=True, exist_ok=True)
    (workspace / "conf" / "tune" / f"{name}.yaml").write_text(content)


def trained_here(workspace: Path, settings_flags: list[str], point: Point, directory: Path) -> float:
    """The best validation score of a point, trained without Ray and without Tune."""
    return score_here(workspace, with_point(parse_train_settings([*FLAGS, *settings_flags]), point, "here"), directory)


def score_here(workspace: Path, settings: Settings, directory: Path) -> float:
    events: list[Event] = []
    data = open_prepared(workspace / "data" / "prepared" / "tiny")
    TrainLoop(settings, data, directory, World(), Hooks(events.append, lambda: False)).train()
    return max(e.metrics["val/ndcg_p_at_10"] for e in events if isinstance(e, EpochDone))


def mlflow_tree(workspace: Path, name: str = "") -> tuple[Run, dict[str, list[Run]]]:
    """(the run of the only sweep, or of the sweep with this name; {stage: trials})."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    below: dict[str, list[Run]] = {}
    for run in found:
        below.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    (sweep,) = [run for run in below[""] if name in (run.info.run_name, "")]
    assert sweep.data.tags["kind"] == "sweep"
    stages = below[sweep.info.run_id]
    return sweep, {stage.info.run_name or "": below.get(stage.info.run_id, []) for stage in stages}


def read(directory: Path) -> Record:
    record = read_record(directory)
    assert record is not None
    return record


def read_best(stage_directory: Path) -> Record:
    best = best_of(ended_and_begun(stage_directory)[0])
    assert best is not None
    return best


def only_process(sweep: Sweep, pattern: str) -> psutil.Process:
    """Waits until exactly one process matches: Ray changes the titles of its processes while they run."""
    found: list[psutil.Process] = []

    def is_one() -> bool:
        found[:] = sweep.processes(pattern)
        return len(found) == 1

    wait_until(is_one)
    return found[0]


def wait_for_epoch(directory: Path) -> None:
    """Waits until a running trial has written an epoch to its spool."""

    def told() -> bool:
        running = [trial for trial in directory.glob("trial-*") if not (trial / TRIAL).exists()]
        spools = [trial / RECORDS for trial in running if (trial / RECORDS).exists()]
        return any('"epoch/1"' in spool.read_text() for spool in spools)

    wait_until(told)
