"""A training with its run in MLflow: starts the workers, shows and logs their events, records how it ended."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol

from pnfrec_dist.cli import EXIT_INTERRUPTED
from pnfrec_dist.cluster.session import planned_workers, start_ray
from pnfrec_dist.cluster.single_worker import run_here
from pnfrec_dist.cluster.stop_signals import stop_requests
from pnfrec_dist.cluster.worker_plan import WorkerPlan, worker_options
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import InputError, RunError, first_line
from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION
from pnfrec_dist.experiments.continuing_command import continuing_command
from pnfrec_dist.experiments.final_training import best_of, chosen_by
from pnfrec_dist.experiments.terminal_progress import (
    ProgressReport,
    headline_table,
    shown_weights,
    warning_of_full_lists,
)
from pnfrec_dist.experiments.training_plan import checked_plan, open_data
from pnfrec_dist.files.atomic import writing
from pnfrec_dist.inference.warm_start_source import open_source
from pnfrec_dist.tracking.address import shown, tracking_uri
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import Opening, opening_of_training
from pnfrec_dist.tracking.spool import FAILED, FINISHED, KILLED
from pnfrec_dist.tracking.system_metrics import MachineMetrics
from pnfrec_dist.training.checkpoint_manager import checkpoints, with_kept_precision
from pnfrec_dist.training.events import Alive, BestTested, Diverged, EpochDone, Event, Refused, Trained, epochs_of
from pnfrec_dist.training.loop import Hooks, Phase
from pnfrec_dist.training.run_directory import RUN_FILE, Run, begin, choose_run
from pnfrec_dist.training.warm_start import catalogs, write_start

WAY_OUT = "make room, or choose another --output-dir"
"""What to do if a run's directory cannot be written."""
CONTINUE = "run the same command again to continue from the newest checkpoint"
"""What to do if a training failed."""


def drive(settings: Settings) -> int:
    """Trains and returns the exit code. Raises InputError for wrong input."""
    data = open_data(settings)
    uri = tracking_uri()
    run = choose_run(settings, data.manifest.digest)
    with planned_workers(worker_options(settings)) as plan:
        planned = with_kept_precision(settings, run.directory)
        print(f"{checked_plan(planned, data, plan)}\ntracking: {shown(uri)}", flush=True)
        if settings.final:
            best = best_of(chosen_by(settings))
            score = best.metrics[LOGGED_SELECTION]
            print(f"final training: as {settings.final}, whose best epoch {best.epoch} has val NDCG_p@10 {score:.4f}")
        if settings.init_from and not checkpoints(run.directory):
            print(f"warm start from {settings.init_from}: {catalogs(open_source(settings.init_from, settings), data)}")
        if settings.dry_run:
            print("dry run: nothing was trained")
            return 0
        opening = opening_of_training(settings, data.manifest, data.directory)
        done = train(Job(settings, plan, data, run, uri, opening))
    if done is None:
        print("to continue, run:")
        print(f"  {continuing_command(settings, run.directory)}")
        return EXIT_INTERRUPTED
    print()
    if settings.final:
        evaluated = chosen_by(settings)
        tested = {settings.model: evaluated.test, **evaluated.floors}
        print(f"This model has no test of its own. The test of {settings.final}, which chose it:\n")
    else:
        tested = {settings.model: done.test.metrics, **done.test.floors}
    print(headline_table(tested))
    print()
    if warning := warning_of_full_lists(tested):
        print(warning, file=sys.stderr)
    if weights := shown_weights(done.test.weights):
        print(f"chosen on validation users: {', '.join(weights)}")
    what = "trained on all interactions, epoch" if settings.final else "best epoch"
    print(f"{what} {done.test.best_epoch}, checkpoint {done.test.checkpoint}")
    where = f"at {shown(uri)}" if uri.startswith("http") else "with: make mlflow-ui (or: pnfrec tracking ui)"
    print(f"MLflow run {done.run_id or '(not known yet)'}; see it {where}")
    return 0


class Display(Protocol):
    """Shows the user what a training reports."""

    def show(self, event: Event) -> None: ...

    def line(self, text: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """A run, and what to do with it."""

    settings: Settings
    plan: WorkerPlan
    data: PreparedData
    run: Run
    uri: str
    """MLflow's"""
    opening: Opening
    phase: Phase = "both"


@dataclass(frozen=True)
class Finished:
    """A training that is complete, with its test."""

    test: BestTested
    run_id: str
    """MLflow's, or "" if MLflow has not given one yet"""
    asked_to_stop: bool
    """whether a stop was requested meanwhile"""


def train(job: Job, stop: threading.Event | None = None, log: IO[str] | None = None) -> Finished | None:
    """Trains, and shows progress on the terminal, or in the file `log`.

    stop: requests that it stops after the step in progress; None: SIGINT and SIGTERM do. Returns None if it stopped
    before the test. Raises InputError if the settings are refused, or the run diverged or cannot be written; RunError
    if its workers failed too often.
    """
    settings, run = job.settings, job.run
    with taken_up(run, settings, job.data) as (epoch, done):
        progress = ProgressReport(settings.epochs, epoch, job.plan.num_workers, log)
        if (epoch, done) != (1, 0) and job.phase != "test":
            is_alone = settings.resume == "auto" and not job.opening.parent
            way_out = "  (to start a new run: --resume never)" if is_alone else ""
            progress.line(f"continuing {run.directory} in epoch {epoch} after step {done}{way_out}")
        with progress, stop_requests() if stop is None else contextlib.nullcontext(stop) as asked:
            try:
                outcome = run_tracked(job, progress, asked, _log_test)
            except RunError as error:
                raise RunError(f"{error}; {CONTINUE}") from error
    if outcome.test is None:
        progress.line(f"stopped; MLflow run {outcome.run_id} has the status {outcome.status}")
        return None
    return Finished(outcome.test, outcome.run_id, asked.is_set())


@contextlib.contextmanager
def taken_up(run: Run, settings: Settings, data: PreparedData, *, wait: bool = False) -> Iterator[tuple[int, int]]:
    """Locks the run until the context ends, and begins or resumes it: (epoch, step) from which it goes on.

    Raises InputError if another command uses it (wait: waits until none does), its directory cannot be written, or it
    cannot begin with the weights of settings.init_from.
    """
    with contextlib.ExitStack() as stack:
        with writing(f"to {run.directory}", WAY_OUT):
            stack.enter_context(run.locked(wait=wait))
            begun = begin(run, settings)
        if settings.init_from and not checkpoints(run.directory):
            source = open_source(settings.init_from, settings)
            with writing(f"to {run.directory}", WAY_OUT):
                write_start(run.directory, source, settings, data)
        yield begun


@dataclass
class Outcome:
    """The outcome of a job so far."""

    status: str = FAILED
    """MLflow's"""
    run_id: str = ""
    """MLflow's, or "" if MLflow has not given one yet"""
    epochs: dict[int, EpochDone] = field(default_factory=dict)
    """by number: those reported, including earlier ones of the same run"""
    trained: Trained | None = None
    test: BestTested | None = None
    diverged: Diverged | None = None
    refused: Refused | None = None
    failed: str = ""
    """the error that ended it, in one line, such as workers that failed too often"""

    def see(self, event: Event) -> None:
        for epoch in epochs_of(event):
            self.epochs[epoch.epoch] = epoch
        if isinstance(event, Trained):
            self.trained = event
        elif isinstance(event, BestTested):
            self.test = event
        elif isinstance(event, Diverged):
            self.diverged = event
        elif isinstance(event, Refused):
            self.refused = event

    @property
    def in_order(self) -> list[EpochDone]:
        """The epochs, by number."""
        return [self.epochs[epoch] for epoch in sorted(self.epochs)]

    @property
    def reason(self) -> str:
        """Why it failed, in one line; "" if it did not."""
        if self.failed or self.diverged is not None:
            return self.failed or "the loss or a gradient is not finite"
        return "" if self.refused is None else self.refused.text


AtEnd = Callable[[Job, TrackedRun, Outcome], None]
"""Logs the outcome of a job, also if it ends with an error."""


def run_tracked(job: Job, display: Display, stop: threading.Event, at_end: AtEnd) -> Outcome:
    """Runs the workers and logs what they report. MLflow's run ends with the status of the outcome.

    Raises as train() does.
    """
    run, outcome = job.run, Outcome()
    tracked = TrackedRun(run.directory, run.key, job.uri, display.line)
    tracked.begin(job.opening)
    try:

        def on_event(event: Event) -> None:
            tracked.require_accepted()
            outcome.see(event)
            for epoch in epochs_of(event):
                tracked.log_metrics(f"epoch/{epoch.epoch}", epoch.metrics, epoch.epoch)
            display.show(event)

        if not stop.is_set():
            _run_workers(job, tracked, on_event, stop)
        outcome.status = _status(outcome, job.phase)
    except Exception as error:
        outcome.failed = first_line(error)
        raise
    except KeyboardInterrupt:
        outcome.status = KILLED
        raise
    finally:
        at_end(job, tracked, outcome)
        try:
            tracked.close(outcome.status)
        finally:
            if not tracked.spool.pending:  # otherwise, the same command must still send records to MLflow
                run.ended = {FINISHED: "finished"}.get(outcome.status, "diverged" if outcome.diverged else "")
                _write(run, display)
    tracked.require_accepted()  # the refusal of a short training may come after its last event
    if outcome.refused is not None:
        raise InputError(outcome.refused.text)
    if outcome.diverged is not None:
        raise InputError(say_diverged(outcome.diverged, job.settings))
    outcome.run_id = tracked.run_id
    return outcome


def _run_workers(job: Job, tracked: TrackedRun, on_event: Callable[[Event], None], stop: threading.Event) -> None:
    """Runs a single worker in this process, several with Ray Train, which takes seconds to import."""
    with MachineMetrics(tracked):
        if job.plan.in_this_process:
            hooks = Hooks(on_event, stop.is_set, lambda share: on_event(Alive(share)))
            run_here(job.settings, job.plan, job.data, job.run.directory, hooks, job.phase)
        else:
            start_ray(worker_options(job.settings))
            tracked.require_accepted()
            from pnfrec_dist.cluster.trainer import run_training

            directories = job.data.directory, job.run.directory
            run_training(job.settings, job.plan, *directories, on_event, stop, job.phase)


def _status(outcome: Outcome, phase: Phase) -> str:
    """MLflow's status of a run whose workers ended without an error."""
    if (outcome.trained if phase == "train" else outcome.test) is not None:
        return FINISHED
    return KILLED if outcome.diverged is None and outcome.refused is None else FAILED


def _log_test(job: Job, tracked: TrackedRun, outcome: Outcome) -> None:
    if outcome.test is not None:
        from pnfrec_dist.experiments.logged_result import log_outcome  # this imports MLflow

        log_outcome(tracked, job.settings, job.data, outcome.in_order, outcome.test)


def _write(run: Run, display: Display) -> None:
    try:
        run.write()
    except OSError as error:
        display.line(f"warning: cannot write {run.directory / RUN_FILE} ({error.strerror}); the run stays unfinished")


def say_diverged(event: Diverged, settings: Settings) -> str:
    where = f"step {event.step} of epoch {event.epoch}"
    if settings.train.non_finite == "skip":
        what = f"{event.skipped} steps in a row, up to {where}, had a loss or gradient that is not finite"
        way_out = f"lower --optimizer.lr {settings.optimizer.lr:g}"
    else:
        what = f"the loss or a gradient is not finite in {where}"
        way_out = f"lower --optimizer.lr {settings.optimizer.lr:g}, or skip such steps with --train.non-finite skip"
    return f"{what}; the users of this step are in {event.batch}; {way_out}"
