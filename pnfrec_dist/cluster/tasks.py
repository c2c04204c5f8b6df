"""Runs units of work as Ray tasks, some at a time. If a worker is lost, Ray runs its unit again."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pnfrec_dist.cluster.session import start_ray
from pnfrec_dist.cluster.worker_plan import WorkerOptions, WorkerPlan
from pnfrec_dist.errors import InputError, RunError

POLL_SECONDS = 1.0
MAX_LOST = 3
"""How often the worker of one unit may be lost."""


def run_units(
    plan: WorkerPlan,
    work: Callable[..., Any],
    arguments: Sequence[Any],
    units: Iterable[Any],
    on_done: Callable[[Any, Any], None],
) -> None:
    """Calls work(plan.use_gpu, cpus, unit, *arguments) for each unit, plan.num_workers at a time, or in this process.

    Ray's workers get the arguments through its object store. on_done gets (unit, its result), in the order in which
    units end. Raises the InputError that a worker raised, and RunError if a unit's worker is lost too often.
    """
    if plan.in_this_process:
        for unit in units:
            on_done(unit, work(plan.use_gpu, plan.cpus_per_worker, unit, *arguments))
        return
    start_ray(WorkerOptions(num_workers=plan.num_workers))
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    shared = [ray.put(argument) for argument in arguments]
    remote: Any = ray.remote(num_cpus=plan.cpus_per_worker, num_gpus=int(plan.use_gpu), max_retries=MAX_LOST)(work)
    waiting, running = iter(units), {}

    def start_next() -> None:
        for unit in waiting:
            running[remote.remote(plan.use_gpu, plan.cpus_per_worker, unit, *shared)] = unit
            return

    for _ in range(plan.num_workers):
        start_next()
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
        for result in done:
            unit = running.pop(result)
            try:
                on_done(unit, ray.get(result))
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from error
                raise
            except WorkerCrashedError as error:
                way_out = "they may lack memory; run the same command again to continue"
                raise RunError(f"workers were lost more than {MAX_LOST} times in a row; {way_out}") from error
            start_next()
