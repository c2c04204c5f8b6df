"""Units of work over a real Ray."""

from typing import Any

import pytest

from pnfrec_dist.cluster.planning import WorkerPlan
from pnfrec_dist.cluster.tasks import run_units
from pnfrec_dist.errors import InputError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_here")]


def test_every_unit_is_done_once_with_the_shared_arguments() -> None:
    def work(use_gpu: bool, cpus: float, unit: int, factor: int, names: list[str]) -> tuple[Any, ...]:
        return use_gpu, cpus, unit * factor, names

    found: dict[int, Any] = {}
    run_units(WorkerPlan(2, False, 1.0), work, (10, ["a"]), range(5), found.setdefault)
    assert found == {unit: (False, 1.0, 10 * unit, ["a"]) for unit in range(5)}
    run_units(WorkerPlan(2, False, 1.0), work, (10, ["a"]), [], found.setdefault)


def test_wrong_input_is_raised_as_the_worker_raised_it() -> None:
    def work(use_gpu: bool, cpus: float, unit: int) -> None:
        raise InputError(f"unit {unit} is wrong; leave it out")

    with pytest.raises(InputError, match=r"^unit 7 is wrong; leave it out$"):
        run_units(WorkerPlan(1, False, 1.0), work, (), [7], lambda *_: None)
