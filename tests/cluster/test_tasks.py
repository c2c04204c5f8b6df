"""Units of work with a fake Ray: what runs when, and which errors are raised."""

import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError, WorkerCrashedError

from pnfrec_dist.cluster.tasks import MAX_LOST, run_units
from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.errors import InputError, RunError

PLAN = WorkerPlan(2, False, 3.0)


class PlayedRay:
    """A fake Ray. Work is done when its result is fetched; the unit that started last ends first."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.calls: list[Callable[[], Any]] = []
        self.running, self.most = 0, 0

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], SimpleNamespace]:
        self.options = options

        def start(work: Callable[..., Any], *args: Any) -> int:
            self.running += 1
            self.most = max(self.most, self.running)
            self.calls.append(lambda: work(*args))
            return len(self.calls) - 1

        return lambda work: SimpleNamespace(remote=lambda *args: start(work, *args))

    def put(self, value: Any) -> Any:
        return value

    def wait(self, results: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        assert num_returns == 1 and timeout > 0
        return results[-1:], results[:-1]

    def get(self, result: int) -> Any:
        self.running -= 1
        return self.calls[result]()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedRay:
    played = PlayedRay()
    for name in ("remote", "put", "wait", "get"):
        monkeypatch.setattr(ray, name, getattr(played, name))
    return played


def test_every_unit_is_done_once_some_at_a_time(played: PlayedRay) -> None:
    done: list[tuple[int, str]] = []

    def work(use_gpu: bool, cpus: float, units: Sequence[int], prefix: str) -> Iterator[str]:
        assert (use_gpu, cpus) == (False, 3.0)
        return (f"{prefix}{unit}" for unit in units)

    run_units(PLAN, work, ["part-"], range(5), lambda unit, made: done.append((unit, made)))
    assert sorted(done) == [(unit, f"part-{unit}") for unit in range(5)]
    assert [unit for unit, _ in done] == [1, 2, 3, 4, 0], "in the order in which they end"
    assert played.most == PLAN.num_workers
    assert played.options == {"num_cpus": 3.0, "num_gpus": 0, "max_retries": MAX_LOST}


def test_a_task_may_have_several_units(played: PlayedRay) -> None:
    done: list[tuple[int, int]] = []
    run_units(PLAN, doubled, [], range(5), lambda *pair: done.append(pair), 2)
    assert done == [(2, 4), (3, 6), (4, 8), (0, 0), (1, 2)] and len(played.calls) == 3


def doubled(use_gpu: bool, cpus: float, units: Sequence[int]) -> Iterator[int]:
    for unit in units:
        yield 2 * unit


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*_: Any) -> None:
        raise error

    return work


@pytest.mark.usefixtures("played")
def test_errors_of_workers_come_out_as_they_were_raised() -> None:
    def run(error: BaseException) -> None:
        run_units(PLAN, raising(error), [], range(3), lambda *_: None)

    with pytest.raises(InputError, match="no such file"):
        run(RayTaskError("work", "traceback", InputError("no such file")))
    with pytest.raises(RayTaskError):
        run(RayTaskError("work", "traceback", ZeroDivisionError()))
    with pytest.raises(RunError, match=f"workers were lost more than {MAX_LOST} times in a row"):
        run(WorkerCrashedError())


def test_a_single_worker_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    done: list[tuple[int, int]] = []
    here = WorkerPlan(1, False, 2.0, in_this_process=True)
    run_units(here, doubled, [], [3, 4], lambda *pair: done.append(pair))
    assert done == [(3, 6), (4, 8)]
