"""Runs units of work as Ray tasks, some at a time. If a worker is lost, Ray runs its units again."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pnfrec_dist.cluster.session import start_ray
from pnfrec_dist.cluster.worker_plan import WorkerOptions, WorkerPlan
from pnfrec_dist.errors import InputError, RunError

POLL_SECONDS = 1.0
MAX_LOST = 3
"""How often the worker of one task may be lost."""


def run_units(
    plan: WorkerPlan,
    work: Callable[..., Iterator[Any]],
    arguments: Sequence[Any],
    units: Sequence[Any],
    on_done: Callable[[Any, Any], None],
    units_per_task: int = 1,
) -> None:
    """Calls work(plan.use_gpu, cpus, units, *arguments), which yields the result of each unit, in order: once for all
    units in this process, or as Ray tasks of units_per_task units, plan.num_workers at a time.

    Ray's workers get the arguments through its object store. on_done gets (unit, its result), in the order in which
    tasks end. Raises the InputError that a worker raised, and RunError if a task's worker is lost too often.
    """
    if plan.in_this_process:
        made = work(plan.use_gpu, plan.cpus_per_worker, units, *arguments)
        for unit, result in zip(units, made, strict=True):
            on_done(unit, result)
        return
    start_ray(WorkerOptions(num_workers=plan.num_workers))
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    @functools.wraps(work)  # Ray shows its name
    def whole(*args: Any) -> list[Any]:
        return list(work(*args))

    shared = [ray.put(argument) for argument in arguments]
    remote: Any = ray.remote(num_cpus=plan.cpus_per_worker, num_gpus=int(plan.use_gpu), max_retries=MAX_LOST)(whole)
    tasks = [units[first : first + units_per_task] for first in range(0, len(units), units_per_task)]
    waiting, running = iter(tasks), {}

    def start_next() -> None:
        for task in waiting:
            running[remote.remote(plan.use_gpu, plan.cpus_per_worker, task, *shared)] = task
            return

    for _ in range(plan.num_workers):
        start_next()
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
        for result in done:
            task = running.pop(result)
            try:
                for unit, made in zip(task, ray.get(result), strict=True):
                    on_done(unit, made)
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from error
                raise
            except WorkerCrashedError as error:
                way_out = "they may lack memory; run the same command again to continue"
                raise RunError(f"workers were lost more than {MAX_LOST} times in a row; {way_out}") from error
            start_next()
