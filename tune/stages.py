"""Runs the trials of one stage on Ray Tune, as many at a time as fit."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan, plan_concurrent
from pnfrec_dist.cluster.stop_signals import stop_requests
from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan
from pnfrec_dist.errors import InputError, RunError, first_line
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.training.run_directory import RUN_FILE, read_run
from tune.ending import Ending
from tune.records import Record, best_of, ended_and_begun, trial_name
from tune.search import DistinctPoints, listed_points, scheduler
from tune.space import Stage
from tune.trial import STATES, Assignment, Trial
from tune.watch import Watch, drop_checkpoints

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1000",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Read by Ray Tune: none of its loggers and tables, more time for trials to stop, no signal handler."""


def resources(plan: WorkerPlan) -> dict[str, float]:
    """The resources of a trial's process: those of its worker if it is the only worker, else one byte of memory.

    Several workers request their CPUs or GPUs themselves. If each trial held a CPU as well, the trials could hold all
    CPUs and wait for their workers for ever.
    """
    if not plan.in_this_process:
        return {"memory": 1.0}
    return {"cpu": plan.cpus_per_worker, **({"gpu": plan.gpu_share} if plan.use_gpu else {})}


def plan_trials(nodes: Sequence[Node], workers: int, gpus_per_trial: float | None, most: int | None) -> ConcurrentPlan:
    """How many trials fit, and what each gets. gpus_per_trial: below 1, a share of a GPU; None: 1 if there are GPUs.

    Raises InputError if not even one trial fits: Ray would wait for ever without a message.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if gpus_per_trial is None:
        gpus_per_trial = 1 if gpus >= 1 else 0
    if gpus_per_trial > gpus:
        raise InputError(
            f"--gpus-per-trial is {gpus_per_trial:g}, but Ray sees {gpus:g} GPUs; lower it, or use 0 for CPU workers"
        )
    if not gpus_per_trial and workers > cpus:
        raise InputError(f"--workers-per-trial is {workers}, but Ray sees {cpus:g} CPUs; lower it")
    if gpus_per_trial:
        each = WorkerOptions(num_gpus=math.ceil(gpus_per_trial), gpu_share=min(gpus_per_trial, 1.0))
    else:
        each = WorkerOptions(num_workers=workers, num_gpus=0)
    return plan_concurrent(nodes, each, most, "trial")


@dataclass(frozen=True)
class StageResult:
    """The trials of a stage, and whether the stage is complete."""

    records: list[Record]
    """of the trials that ended, and of those that the time budget stopped"""
    complete: bool
    """no trial is missing"""
    is_cut: bool
    """whether the time budget ended it"""
    seconds: float
    """that this command spent on the stage"""
    own_seconds: float
    """sum over the trials that ran in this command"""


def run_stage(stage: Stage, trial: Assignment, concurrent: int, seconds_left: float | None) -> StageResult:
    """Runs the trials that have not ended, `concurrent` at a time. seconds_left: of the time budget."""
    started, directory, settings = time.monotonic(), Path(trial.directory), trial.settings
    ended, begun = ended_and_begun(directory)
    over = {record.name for record in ended}
    listed = [] if stage.search == "optuna" else listed_points(stage, settings.seed)
    points = [point for point in listed if trial_name(point) not in over]
    missing = max(stage.num_samples - len(ended), 0) if stage.search == "optuna" else len(points)
    if not missing or (seconds_left is not None and seconds_left <= 0):
        _tidy(directory, ended, trial.uri)  # an earlier command may have been killed before this
        return StageResult(ended, not missing, missing > 0, 0.0, 0.0)
    watch = Watch(stage.name, directory, settings.epochs, ended, missing, concurrent)
    how: dict[str, Any] = {"max_concurrent_trials": concurrent}
    search = None
    if stage.search == "optuna":
        search = DistinctPoints(stage, settings.seed, ended, begun)
        how = {"search_alg": ConcurrencyLimiter(search, concurrent), "num_samples": missing}
    how |= {"scheduler": scheduler(stage, settings.epochs, ended)}
    freed = contextlib.nullcontext() if settings.ray_address else _placement_groups_freed()
    with watch, freed, stop_requests() as asked:
        own = trial.plan.in_this_process  # else Ray Train watches the trial's workers
        on_poll = (lambda: watch.kill_stuck(settings.stall_timeout)) if own else (lambda: None)
        ending = Ending(asked, seconds_left, watch.running, on_poll)
        _fit(trial, {"point": tune.grid_search(points)} if points else {}, how, watch, ending)
    is_over = watch.done >= missing or (search is not None and search.is_exhausted)
    is_cut = ending.is_cut and not is_over
    _tidy(directory, watch.records, trial.uri)
    records = [*watch.records, *(watch.cut_off() if is_cut else [])]
    of_trials = sum(record.seconds for record in records if record.name not in over)
    return StageResult(records, is_over, is_cut, time.monotonic() - started, of_trials)


def _fit(assignment: Assignment, space: dict[str, Any], how: dict[str, Any], watch: Watch, ending: Ending) -> None:
    """Runs Ray Tune and deletes the files that it writes: `watch` keeps what is needed."""
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    files = Path(assignment.directory) / "ray"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, assignment=assignment), resources(assignment.plan)),
        param_space=space,
        tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id, **how),
        run_config=tune.RunConfig(
            name=str(time.time_ns()),
            storage_path=str(files),
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=assignment.settings.max_failures),
            stop=ending,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    except (tune.TuneError, OSError) as error:
        raise RunError(f"the search stopped: {first_line(error)}; run the same command again to continue") from error
    finally:
        shutil.rmtree(files, ignore_errors=True)


def _tidy(directory: Path, records: list[Record], uri: str) -> None:
    """Deletes all checkpoints except the best trial's, and records in MLflow how killed trials ended."""
    drop_checkpoints(directory, records, best_of(records))
    known = {record.name: record for record in records}
    for trial in directory.glob("trial-*"):
        if (trial / RUN_FILE).exists():
            record = known.get(trial.name)
            tags = {"state": record.state, "reason": record.reason} if record else {"state": "stopped"}
            (status,) = (status for status, state in STATES.items() if state == tags["state"])
            TrackedRun(trial, read_run(trial).key, uri, print).conclude(status, tags)


@contextlib.contextmanager
def _placement_groups_freed() -> Iterator[None]:
    """On a Ray of our own, removes placement groups of killed trials: the next stage would lack their resources."""
    yield
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            with contextlib.suppress(Exception):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
