from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan
from pnfrec_dist.cluster.worker_plan import Node, WorkerPlan
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.training_plan import checked_plan
from tune.space import load_stage, with_point
from tune.stages import plan_trials, resources


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "per_trial", "most", "expected"),
    [
        (2, 0, 1, None, None, (2, 1, 1.0)),
        (2, 0, 2, None, None, (1, 2, 1.0)),
        (5, 0, 2, None, None, (2, 2, 1.0)),
        (8, 0, 2, None, 2, (2, 2, 2.0)),
        (2, 0, 1, None, 9, (2, 1, 1.0)),
        (16, 4, 1, None, None, (4, 1, 4.0)),
        (16, 4, 1, 2, None, (2, 2, 4.0)),
        (16, 4, 3, 0, None, (5, 3, 1.0)),
        (2, 4, 1, 1, None, (2, 1, 1.0)),
        (16, 1, 1, 0.125, None, (8, 1, 2.0)),
        (16, 2, 1, 0.3, None, (6, 1, 2.0)),
        (4, 1, 1, 0.1, None, (4, 1, 1.0)),
        (16, 1, 1, 0.1, 2, (2, 1, 8.0)),
    ],
)
def test_trials_never_ask_for_more_than_there_is(
    cpus: float, gpus: float, workers: int, per_trial: float | None, most: int | None, expected: tuple[int, int, float]
) -> None:
    plan = plan_trials([Node(cpus, gpus)], workers, per_trial, most)
    each = plan.workers
    assert (plan.concurrent, each.num_workers, each.cpus_per_worker) == expected
    assert plan.concurrent * each.num_workers * each.cpus_per_worker <= cpus
    assert not each.use_gpu or plan.concurrent * each.num_workers * each.gpu_share <= gpus
    assert resources(each).get("gpu", 0) == (each.gpu_share if each.use_gpu and each.num_workers == 1 else 0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "per_trial", "named"),
    [
        (2, 0, 3, None, "--workers-per-trial is 3"),
        (8, 1, 1, 2, "--gpus-per-trial is 2"),
        (8, 0, 1, 1, "sees 0 GPUs"),
        (8, 0, 1, 0.5, "is 0.5, but Ray sees 0 GPUs"),
    ],
)
def test_a_trial_that_never_fits_is_refused(
    cpus: float, gpus: float, workers: int, per_trial: float | None, named: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_trials([Node(cpus, gpus)], workers, per_trial, None)
    assert named in str(caught.value)


def test_trials_that_fit_one_by_one_alone_are_refused_side_by_side(
    tmp_path: Path, prepared_writer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check uses the largest model of the space."""
    data = open_prepared(prepared_writer(tmp_path / "tiny"))
    largest = load_stage("joint").largest()
    assert largest["encoder.hidden_size"] == 512 and largest["encoder.num_blocks"] == 3
    settings, plan = with_point(Settings(), largest, "joint"), WorkerPlan(1, False, 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**31))
    assert "plan: 1 worker, 1 CPU; " in checked_plan(settings, data, plan, ConcurrentPlan(plan, 1, "trial"))
    with pytest.raises(InputError, match=r"8 trials at a time .* use --max-concurrent [2-7]$"):
        checked_plan(settings, data, plan, ConcurrentPlan(plan, 8, "trial"))


def test_every_worker_of_a_trial_finds_a_place_on_one_node() -> None:
    """A head without GPUs has no place for GPU workers, and two small nodes have none for one large worker."""
    plan = plan_trials([Node(48), Node(16, 4)], 1, None, None)
    assert (plan.concurrent, plan.workers.cpus_per_worker) == (4, 4.0)
    assert plan_trials([Node(4), Node(4)], 1, None, 1).workers.cpus_per_worker == 4.0
