"""A training on Ray Train: starts the workers, passes their events to the driver, and stop requests to the workers.

If a worker is lost or stuck, Ray Train starts all workers again. The loop then continues from the newest checkpoint.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from pnfrec_dist.cluster.controller import FailureReport, OwnRendezvous
from pnfrec_dist.cluster.event_board import Board, beside_driver
from pnfrec_dist.cluster.session import has_own_ray
from pnfrec_dist.cluster.watchdog import Watchdog
from pnfrec_dist.cluster.worker import WorkerTask, run_worker
from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.training.events import Event, Warned
from pnfrec_dist.training.loop import Phase
from pnfrec_dist.training.run_directory import write_failure

POLL_SECONDS = 0.25


def run_training(
    settings: Settings,
    plan: WorkerPlan,
    data_dir: Location,
    run_dir: Path,
    on_event: Callable[[Event], None],
    stop: threading.Event,
    phase: Phase = "both",
) -> None:
    """Trains and tests on the planned workers. on_event is called with every event, in this thread.

    After `stop` is set, the workers stop at the end of the step in progress and leave a checkpoint. If workers fail,
    they are started again settings.max_failures times; then RunError is raised. data_dir and run_dir must be absolute
    and reachable from every worker.
    """
    board = beside_driver(Board)
    trainer = _trainer(WorkerTask(settings, plan, data_dir.uri, str(run_dir), phase, board))
    watchdog = Watchdog(settings.stall_timeout)

    def deliver() -> None:
        for event in ray.get(board.take.remote()):
            watchdog.see(event)
            on_event(event)

    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    asked = False
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if stop.is_set() and not asked:
                board.request_stop.remote()
                asked = True
            deliver()
            if text := watchdog.check():
                on_event(Warned(text))
        deliver()
    except InputError:  # MLflow has refused the run; without a stop, its workers would block those of the next run
        board.request_stop.remote()
        thread.join(settings.stall_timeout)
        raise
    if failure and isinstance(failure[0], ray.train.TrainingFailedError):
        raise RunError(_say_failed(failure[0], watchdog.reason, settings, run_dir)) from failure[0]
    if failure:
        raise failure[0]


class _TrainerHere(TorchTrainer):
    """A trainer on a Ray that ends with this process.

    It leaves out the actor that frees the resources of a training whose driver died. That actor starts together with
    the workers and delays them by seconds.
    """

    def _create_default_callbacks(self) -> list[Any]:  # Ray's private method; without it, the start takes longer
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def _trainer(task: WorkerTask) -> TorchTrainer:
    settings, plan, run_dir = task.settings, task.plan, Path(task.run_dir)
    rendezvous: Any = OwnRendezvous("nccl" if plan.use_gpu else "gloo")
    trainer = _TrainerHere if has_own_ray() else TorchTrainer
    return trainer(
        partial(run_worker, task),  # not train_loop_config, which the controller would read
        torch_config=rendezvous,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(plan.min_workers, plan.num_workers) if plan.min_workers else plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker, **({"GPU": 1} if plan.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"{run_dir.name}-{time.time_ns()}",  # with an old name, Ray Train would restore its state of that name
            storage_path=str(run_dir / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=settings.max_failures
            ),
            callbacks=[FailureReport(task.board)],
        ),
    )


def _say_failed(error: BaseException, reason: str, settings: Settings, run_dir: Path) -> str:
    """The failure in one line. The full error of Ray is written to a file."""
    times = f"more than {settings.max_failures} times (--max-failures)"
    return f"workers failed {times}; last error: {reason or error}{write_failure(run_dir, error)}"
