"""One trial: the training path of `python -m pnfrec_dist.train`, without a test, as Ray Tune's Trainable.

The trial's actor is the only worker, or the driver of workers on Ray Train. It is a class, not a function: Tune asks a
class to stop (cleanup), so the trial ends after the step in progress with a checkpoint, and is not killed.
"""

import contextlib
import math
import os
import queue
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from pnfrec_dist.cluster.session import name_ray_to_helpers, prepare_process
from pnfrec_dist.cluster.single_worker import WorkerError
from pnfrec_dist.cluster.worker_plan import WorkerPlan, worker_options
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError, RunError, first_line
from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION
from pnfrec_dist.experiments.tracked_training import Job, Outcome, run_tracked, taken_up
from pnfrec_dist.files.locations import Location
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FAILED, FINISHED, KILLED
from pnfrec_dist.training.events import Earlier, Event, Warned, WorkersFailed, epochs_of
from pnfrec_dist.training.run_directory import RUN_FILE, Run, read_run
from tune.records import State, trial_name
from tune.search import BROKEN, EPOCH, SCORE, SILENCE
from tune.space import Point, described, with_point

LOG, SOURCE = "trial.log", "python -m tune"
BEST_METRIC = f"best_{LOGGED_SELECTION}"
"""Metric of trials and sweeps in MLflow, to sort by."""
HEARING_SECONDS = 2.0
STATES: dict[str, State] = {FINISHED: "finished", KILLED: "stopped", FAILED: "failed"}
"""MLflow's states of a run -> those of a trial."""


@dataclass(frozen=True)
class Assignment:
    """What the trials of a stage share."""

    stage: str
    settings: Settings
    """all settings that the stage does not search"""
    plan: WorkerPlan
    data_dir: str
    directory: str
    """of the stage"""
    uri: str
    """MLflow's"""
    parent: str
    """key of the stage's run in MLflow"""


class Trial(tune.Trainable):
    """Reports each epoch (after a resume also the earlier ones) and how it ended."""

    def setup(self, config: dict[str, Any], assignment: Assignment | None = None) -> None:
        """assignment: passed by tune.with_parameters; the default is only there for Tune's signature."""
        assert assignment is not None
        self.assignment: Assignment = assignment
        self.point: Point = config["point"]
        self.directory = Path(assignment.directory) / trial_name(self.point)
        self.items: queue.Queue[dict[str, Any]] = queue.Queue()
        self.newest: dict[str, Any] = {EPOCH: 0, SCORE: 0.0, "own": 0.0, "seconds": 0.0, "trained": False, "failed": ""}
        self.earlier_seconds = 0.0
        self.asked_to_stop, self.started = threading.Event(), time.monotonic()
        self.heard = self.started
        """when the training last reported; inf after its end"""
        self.broken: WorkerError | None = None
        self.thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self.thread.start()

    def step(self) -> dict[str, Any]:
        """The next report, or after two seconds the last one again: an actor takes no other call during this one.

        Raises the error of the training's only worker: Tune then starts the trial again in a new process.
        """
        if self.broken is not None:
            raise self.broken
        try:
            return self.items.get(timeout=HEARING_SECONDS)
        except queue.Empty:
            return self.newest | self._times()

    def cleanup(self) -> None:
        self.asked_to_stop.set()
        self.thread.join()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts another trial in the same process, to save the imports. Ends the process if the old trial hangs."""
        self.asked_to_stop.set()
        self.thread.join(self.assignment.settings.stall_timeout)
        if self.thread.is_alive():
            os._exit(1)
        Trial.setup(self, new_config, self.assignment)  # self.setup would pass the assignment twice
        return True

    def show(self, event: Event) -> None:
        """Takes the training's events, as a display does."""
        self.heard = time.monotonic()
        for epoch in epochs_of(event):
            if epoch.epoch > self.newest[EPOCH]:
                self.earlier_seconds += epoch.seconds if isinstance(event, Earlier) else 0.0
                self._report(epoch.epoch, epoch.metrics[LOGGED_SELECTION], epoch.seconds)
        if isinstance(event, Warned):
            self.line(event.text)
        elif isinstance(event, WorkersFailed):
            self.line(str(event.reasons))

    def line(self, text: str) -> None:
        """Writes to the trial's log. If the disk is full, the line is lost and the trial continues."""
        with contextlib.suppress(OSError), (self.directory / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def _report(self, epoch: int, score: float, seconds: float) -> None:
        """Reports the epoch's score as "own", and the best so far as SCORE, for the searcher and the scheduler."""
        best = max(score, self.newest[SCORE])
        self.newest = {**self.newest, EPOCH: epoch, SCORE: best, "own": score, "seconds": seconds}
        self.items.put(self.newest | self._times())

    def _times(self) -> dict[str, float]:
        now = time.monotonic()
        return {"trial_seconds": now - self.started + self.earlier_seconds, SILENCE: max(0.0, now - self.heard)}

    def _run(self) -> None:
        ending: dict[str, Any] = {"done": True}
        try:
            ending["trained"] = self._train()
        except WorkerError as error:
            self.items.put(self.newest | {BROKEN: str(error)} | self._times())
            self.broken = error
            return
        except (InputError, RunError) as error:  # as a result: the searcher learns that the point is bad
            ending["failed"] = str(error)
        except BaseException as error:
            ending["failed"] = first_line(error, with_class=True)
            self.line(traceback.format_exc())
        self.items.put(self.newest | ending | self._times())

    def _train(self) -> bool:
        """Trains; whether the training is complete."""
        work = self.assignment
        if not work.plan.in_this_process:
            prepare_process(worker_options(work.settings))
            name_ray_to_helpers()
        settings = with_point(work.settings, self.point, work.stage)
        data = open_prepared(Location(work.data_dir))
        run = Run(self.directory, to_mapping(settings), data.manifest.digest)
        if (self.directory / RUN_FILE).exists():
            run = read_run(self.directory)
        name = f"{work.stage}: {described(self.point)}"
        opening = opening_of_training(settings, data.manifest, data.directory, name, work.parent)
        opening.tags.update({"kind": "trial", "stage": work.stage, "mlflow.source.name": SOURCE})
        with taken_up(run, settings, data, wait=True):
            job = Job(settings, work.plan, data, run, work.uri, opening, "train")
            return run_tracked(job, self, self.asked_to_stop, self._log_state).trained is not None

    def _log_state(self, _: Job, tracked: TrackedRun, outcome: Outcome) -> None:
        """After this, the remaining records are sent to MLflow. This may take long and does not count as a hang."""
        self.heard = math.inf
        _log_state(tracked, outcome)


def _log_state(tracked: TrackedRun, outcome: Outcome) -> None:
    """Logs how the trial ended and its best epoch, as tags and a metric to sort by."""
    number = len(tracked.spool.records)
    tags = {"state": STATES[outcome.status], "reason": outcome.reason}  # replaces that of an earlier attempt
    if outcome.epochs:
        best = max(outcome.in_order, key=lambda epoch: epoch.metrics[LOGGED_SELECTION])
        tags["best_epoch"] = str(best.epoch)
        tracked.log_metrics(f"best/{number}", {BEST_METRIC: best.metrics[LOGGED_SELECTION]}, best.epoch)
    tracked.log_tags(f"state/{number}", tags)
