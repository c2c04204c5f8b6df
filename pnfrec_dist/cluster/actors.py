"""Runs units of work in Ray actors, some at a time, until a stop is requested. A killed actor costs only its unit."""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan
from pnfrec_dist.errors import RunError

POLL_SECONDS = 1.0
Unit = TypeVar("Unit")


class Actor(Protocol):
    """What works on units, one after another; its class is called without arguments."""

    def run(self, work: Any) -> Any: ...

    def request_stop(self) -> None:
        """Called in another thread while run() works: it is to return soon."""


class DiedError(RunError):
    """The process of an actor was killed."""


def run_in_actors(
    actor: type[Actor],
    plan: ConcurrentPlan,
    units: Iterable[Unit],
    work_of: Callable[[Unit], Any],
    on_end: Callable[[Unit, Any], None],
    stop: threading.Event,
) -> None:
    """Calls run(work_of(unit)) for each unit, plan.concurrent at a time, on the Ray that this process has started.

    work_of is called when the unit starts. on_end gets (unit, what run() returned, or the error that it raised, or a
    DiedError), in the order in which units end. After `stop` is set, no other unit starts.
    """
    workers, waiting = plan.workers, iter(units)
    remote_class: Any = ray.remote(actor)
    actors = remote_class.options(
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpu_share if workers.use_gpu else 0,
        max_concurrency=2,  # run() and request_stop()
    )
    running: dict[Any, tuple[Unit, Any]] = {}
    idle: list[Any] = []
    was_asked = False
    try:
        while True:
            while not stop.is_set() and len(running) < plan.concurrent:
                for unit in waiting:
                    one = idle.pop() if idle else actors.remote()
                    running[one.run.remote(work_of(unit))] = unit, one
                    break
                else:
                    break
            if not running:
                return
            if stop.is_set() and not was_asked:
                was_asked = True
                for _, one in running.values():
                    one.request_stop.remote()
            for result in ray.wait(list(running), timeout=POLL_SECONDS)[0]:
                unit, one = running.pop(result)
                end = _end(result)
                if not isinstance(end, DiedError):
                    idle.append(one)
                on_end(unit, end)
    finally:
        for one in [*idle, *(one for _, one in running.values())]:
            ray.kill(one)


def _end(result: Any) -> Any:
    """What a call returned or raised."""
    try:
        return ray.get(result)
    except RayActorError:
        return DiedError("its process died; it may lack memory")
    except RayTaskError as error:
        return error.cause
