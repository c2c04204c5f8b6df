"""The trainings of a reproduction that have no result: runs them, one after another or several at a time."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan, gpu_share, plan_concurrent
from pnfrec_dist.cluster.session import planned_workers, ray_cluster, start_ray
from pnfrec_dist.cluster.stop_signals import stop_requests
from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan, gpu_memory, worker_options
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.experiments.comparison import Recorded
from pnfrec_dist.experiments.reproduction_plan import Training
from pnfrec_dist.experiments.terminal_progress import HEADLINE
from pnfrec_dist.experiments.tracked_training import CONTINUE, Finished, Job, train
from pnfrec_dist.experiments.training_actor import LOG, TrainingActor
from pnfrec_dist.experiments.training_plan import checked_plan, fitting_in_gpu
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.locks import held
from pnfrec_dist.files.text import duration
from pnfrec_dist.inference.artifact import MODEL_DIRECTORY
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.training.result import read_result, read_test_points, read_test_users
from pnfrec_dist.training.run_directory import LOCK_FILE, choose_run, finished_run, training_key

KILLED_SECONDS = 30.0
"""How long to wait for processes of a killed command, which end shortly after it."""


def recorded(training: Training, data_digest: str) -> Recorded | None:
    """The result of a training, or None if it has none. Raises InputError if it cannot be read."""
    run = finished_run(training.settings, data_digest)
    result = read_result(run.directory) if run is not None else None
    if run is None or result is None:
        return None
    settings, users, points = training.settings, read_test_users(run.directory), read_test_points(run.directory)
    has_model = (run.directory / MODEL_DIRECTORY).is_dir()
    return Recorded(
        settings.model, settings.seed, result, users, points, run.key, has_model, training.weight, training.value
    )


def still_missing(trainings: Sequence[Training], data_digest: str) -> list[Training]:
    """The trainings without a result, without repeats: a point of a curve may equal a model of the table."""
    firsts = {training_key(training.settings): training for training in reversed(trainings)}
    return [t for t in trainings if firsts[training_key(t.settings)] is t and recorded(t, data_digest) is None]


class Missing:
    """The trainings without a result, while they run. Says when each one starts and ends."""

    def __init__(
        self,
        trainings: Sequence[Training],
        data: PreparedData,
        uri: str,
        parent: str,
        after_seed: Callable[[list[str]], object],
    ) -> None:
        """trainings: all of the plan; uri: MLflow's; parent: key of the parent run in MLflow.

        after_seed gets the messages so far when all trainings of a seed have ended, unless no other is left.
        """
        self.trainings = still_missing(trainings, data.manifest.digest)
        self.data, self.uri, self.parent, self.after_seed = data, uri, parent, after_seed
        self.problems: list[str] = []
        """messages of the trainings that failed"""
        seeds = groupby(range(len(self.trainings)), key=lambda index: self.trainings[index].settings.seed)
        self.left = [set(indices) for _, indices in seeds]
        """seed by seed, the trainings that have not ended"""
        self.started = time.monotonic()
        self.starts: dict[int, float] = {}
        self.times: list[float] = []
        """seconds of each training that was tested"""
        self.concurrent = 1

    def run(self, at_a_time: int | None) -> bool:
        """Runs all of them, also after one that failed; see plan_trainings. False if one was stopped.

        Raises InputError if they do not fit.
        """
        if not self.trainings:
            return True
        settings = self.trainings[0].settings
        _await_killed(Path(settings.output_dir))
        if may_run_concurrently(at_a_time, settings):
            with ray_cluster(worker_options(settings), dry_run=True) as nodes:
                plan = plan_trainings(self.trainings, self.data, nodes, at_a_time)
                if plan is not None:
                    self._show([checked_plan(t.settings, self.data, plan.workers, plan) for t in self.trainings])
                    print(f"trainings: {plan}; the progress of each is in {settings.output_dir}/*/{LOG}", flush=True)
                    start_ray(worker_options(settings))
                    return self._run_concurrently(plan)
        with planned_workers(worker_options(settings)) as plan:
            self._show([checked_plan(training.settings, self.data, plan) for training in self.trainings])
            return self._run_in_turn(plan)

    def _show(self, plans: list[str]) -> None:
        print(f"{self.trainings[0].name}\n{plans[0]}", flush=True)

    def _run_in_turn(self, plan: WorkerPlan) -> bool:
        for index in range(len(self.trainings)):
            try:
                finished = train(self._begun(index, plan))
            except (InputError, RunError) as error:
                self._failed(index, error)
                continue
            if finished is None:
                return False
            self.times.append(time.monotonic() - self.starts[index])
            print(_tested(finished), flush=True)
            if finished.asked_to_stop:
                return False
            self._ended(index)
        return True

    def _run_concurrently(self, plan: ConcurrentPlan) -> bool:
        from pnfrec_dist.cluster.actors import DiedError, run_in_actors  # imports Ray

        self.concurrent = plan.concurrent
        self.data = PreparedData(Location(self.data.directory.uri), self.data.manifest)  # in any working directory

        def on_end(index: int, end: Any) -> None:
            if isinstance(end, Finished):
                self.times.append(time.monotonic() - self.starts[index])
                self._ended(index, stop, f"{self._label(index)}: {_tested(end)}")
            elif isinstance(end, DiedError):
                self._failed(index, RunError(f"{end}; {CONTINUE}"), stop)
            elif isinstance(end, InputError | RunError):
                self._failed(index, end, stop)
            elif end is None:
                print(f"{self._label(index)}: stopped, with a checkpoint", flush=True)
            else:
                raise end

        with stop_requests() as stop:
            indices = range(len(self.trainings))
            run_in_actors(TrainingActor, plan, indices, lambda index: self._begun(index, plan.workers), on_end, stop)
            return not stop.is_set()

    def _label(self, index: int) -> str:
        return f"[{index + 1}/{len(self.trainings)}] {self.trainings[index].name}"

    def _begun(self, index: int, plan: WorkerPlan) -> Job:
        training, data = self.trainings[index], self.data
        print(f"{self._label(index)}{': started' if self.concurrent > 1 else self._time_left()}", flush=True)
        self.starts[index] = time.monotonic()
        run = choose_run(training.settings, data.manifest.digest)
        opening = opening_of_training(training.settings, data.manifest, data.directory, training.name, self.parent)
        return Job(training.settings, plan, data, run, self.uri, opening)

    def _failed(self, index: int, error: Exception, stop: threading.Event | None = None) -> None:
        self.problems.append(f"{self.trainings[index].name}: {error}")
        print(f"warning: {self.problems[-1]}", flush=True)
        self._ended(index, stop)

    def _ended(self, index: int, stop: threading.Event | None = None, line: str = "") -> None:
        """stop: whether a stop was requested; then the command soon ends with a report."""
        (seed,) = (seed for seed in self.left if index in seed)
        seed.remove(index)
        if line:
            print(f"{line}{self._time_left()}", flush=True)
        if not seed and any(self.left) and not (stop and stop.is_set()):
            self.after_seed(self.problems)

    def _time_left(self) -> str:
        left = sum(map(len, self.left))
        if not self.times or not left:
            return ""
        seconds = sum(self.times) / len(self.times) * left / min(self.concurrent, left)
        return f"  ({duration(time.monotonic() - self.started)} so far, about {duration(seconds)} left)"


def _tested(finished: Finished) -> str:
    found = "  ".join(f"{title} {finished.test.metrics.get(key, math.nan):.4f}" for title, key in HEADLINE)
    return f"test, epoch {finished.test.best_epoch}: {found}"


def may_run_concurrently(at_a_time: int | None, settings: Settings) -> bool:
    """Whether plan_trainings is to be asked. Raises InputError for --at-a-time together with several workers."""
    flags = {"--num-workers": settings.num_workers, "--num-gpus": settings.num_gpus}
    several = next((f"{flag} {number}" for flag, number in flags.items() if (number or 0) > 1), "")
    if several and (at_a_time or 1) > 1:
        what = "trainings at the same time have one worker each"
        raise InputError(f"--at-a-time is {at_a_time}, but {what}; leave it out, or leave out {several}")
    if at_a_time is None:  # of a cluster's GPUs, the memory is not known
        return not several and not settings.ray_address
    return at_a_time > 1


def plan_trainings(
    trainings: Sequence[Training], data: PreparedData, nodes: Sequence[Node], at_a_time: int | None
) -> ConcurrentPlan | None:
    """The plan of single workers for --at-a-time. None: one training after another.

    at_a_time: None: on GPUs, as many as memory and CPUs allow; on CPUs one. Raises InputError if there is no room.
    """
    settings, gpus = trainings[0].settings, sum(node.gpus for node in nodes)
    use_gpu = settings.num_gpus == 1 or (settings.num_gpus is None and settings.num_workers is None and gpus >= 1)
    most, share = at_a_time or len(trainings), 1.0  # the same threads for each, however few are left
    if at_a_time is None and not (use_gpu and gpus >= 1):
        return None
    if use_gpu and gpus >= 1:
        per_gpu = at_a_time or fitting_in_gpu([training.settings for training in trainings], data, gpu_memory())
        if not per_gpu:  # it may fit into several
            return None
        share = gpu_share(nodes, per_gpu, most)
    each = WorkerOptions(num_workers=None if use_gpu else 1, num_gpus=int(use_gpu), gpu_share=share)
    plan = plan_concurrent(nodes, each, most, "training")
    if at_a_time is None:
        return None if plan.concurrent == gpus == 1 else plan
    if plan.concurrent < most:
        raise InputError(
            f"--at-a-time is {at_a_time}, but only {plan.concurrent} trainings fit at a time: each needs a CPU"
            f"{' and room on a GPU' if use_gpu else ''}; lower it"
        )
    return plan


def described_plan(trainings: Sequence[Training], data: PreparedData, at_a_time: int | None) -> str:
    """How many trainings would run at a time, for a dry run. Raises InputError as plan_trainings does."""
    settings = trainings[0].settings
    if may_run_concurrently(at_a_time, settings):
        with ray_cluster(worker_options(settings), dry_run=True) as nodes:
            plan = plan_trainings(trainings, data, nodes, at_a_time)
        if plan is not None:
            return str(plan)
    return "one training at a time"


def _await_killed(directory: Path) -> None:
    """Waits until no process uses a run below `directory`, so that all unfinished ones can be continued."""
    deadline = time.monotonic() + KILLED_SECONDS
    for lock in directory.glob(f"*/{LOCK_FILE}"):
        is_free = False
        while not is_free and time.monotonic() < deadline:
            with contextlib.suppress(OSError), held(lock) as is_free:
                pass
            if not is_free:
                time.sleep(0.1)
