"""How many trainings share the CPUs and GPUs of made machines."""

from collections.abc import Callable

import pytest

from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan, gpu_share, plan_concurrent
from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan


@pytest.mark.parametrize(
    ("nodes", "per_gpu", "most", "expected"),
    [
        ([Node(16, 1)], 8, None, 0.125),  # the memory decides
        ([Node(4, 1)], 8, None, 0.25),  # each needs a CPU
        ([Node(16, 1)], 8, 3, 0.3333),  # no more are asked for; rounded down, so that three fit
        ([Node(16, 4)], 8, 6, 0.5),  # six on four GPUs
        ([Node(16, 4)], 8, None, 0.25),
        ([Node(48), Node(4, 2), Node(16, 2)], 8, None, 0.5),  # the node with the fewest CPUs for a GPU
        ([Node(16, 1)], 1, None, 1.0),
        ([Node(16, 1)], 0, None, 1.0),  # too large even alone: the check of the memory says so
        ([Node(1, 2)], 8, None, 1.0),
    ],
)
def test_a_share_is_as_small_as_memory_cpus_and_the_number_allow(
    nodes: list[Node], per_gpu: int, most: int | None, expected: float
) -> None:
    assert gpu_share(nodes, per_gpu, most) == expected


@pytest.mark.parametrize("count", range(1, 40))
def test_all_that_share_gpus_fit(count: int) -> None:
    """In CPUs, and in GPUs as Ray counts them."""
    nodes = [Node(64, 1), Node(100, 2)]
    share = gpu_share(nodes, count, None)
    plan = plan_concurrent(nodes, WorkerOptions(num_gpus=1, gpu_share=share), None, "trial")
    assert plan.concurrent == 3 * count and plan.workers.in_this_process and plan.workers.gpu_share == share
    assert count * round(share * 10_000) <= 10_000
    assert sum(node.places(plan.workers.cpus_per_worker, share) for node in nodes) >= plan.concurrent


def shared(what: str = "trial", share: float = 0.125, concurrent: int = 8) -> ConcurrentPlan:
    workers = WorkerPlan(1, share > 0, 2.0, in_this_process=True, gpu_share=share or 1.0)
    return ConcurrentPlan(workers, concurrent, "trial" if what == "trial" else "training")


def test_a_plan_says_what_each_gets() -> None:
    assert str(shared()) == "8 trials at a time, each with 1 worker, 0.125 GPU, 2 CPUs"
    assert str(shared("training", 1.0, 1)) == "one training at a time, each with 1 worker, 1 GPU"


@pytest.mark.parametrize(
    ("plan", "flag"),
    [
        (lambda: shared(share=0), "--max-concurrent 3"),
        (lambda: shared(), "--gpus-per-trial 0.3333"),
        (lambda: shared("training", 0), "--at-a-time 3"),
        (lambda: shared("training"), "--at-a-time 3"),
        (lambda: shared("training", 0.25, 8), "--at-a-time 6"),  # on two GPUs
    ],
)
def test_the_way_out_is_the_flag_of_the_command(plan: Callable[[], ConcurrentPlan], flag: str) -> None:
    assert plan().fewer(3) == flag
