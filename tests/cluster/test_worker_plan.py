"""Which workers the flags give on some machines."""

import pytest

from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan, plan_workers, worker_options
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError


def test_every_worker_finds_a_place_on_one_node() -> None:
    assert plan_workers(WorkerOptions(num_workers=1), [Node(4), Node(4)]).cpus_per_worker == 4.0
    assert plan_workers(WorkerOptions(num_workers=3), [Node(4), Node(4)]).cpus_per_worker == 2.0
    assert plan_workers(WorkerOptions(num_workers=2), [Node(5)]).cpus_per_worker == 2.0
    assert plan_workers(WorkerOptions(), [Node(2), Node(6, 2), Node(8, 1)]).cpus_per_worker == 3.0
    with pytest.raises(InputError, match="3 workers need 3 CPUs, but 2 were found"):
        plan_workers(WorkerOptions(num_workers=3), [Node(1), Node(1)])


@pytest.mark.parametrize(
    ("num_workers", "min_workers", "said"),
    [(None, None, "2 workers, 4 CPUs each"), (3, 1, "1 to 3 workers, 2 CPUs each"), (1, 1, "1 worker, 8 CPUs")],
)
def test_the_plan_says_what_the_flags_mean(num_workers: int | None, min_workers: int | None, said: str) -> None:
    assert str(plan_workers(WorkerOptions(num_workers=num_workers, min_workers=min_workers), [Node(8)])) == said


def test_gpus_that_ray_does_not_see_are_refused() -> None:
    with pytest.raises(InputError, match="--num-gpus 2, but 0 GPUs were found"):
        plan_workers(WorkerOptions(num_gpus=2), [Node(8)])


def test_every_gpu_gets_one_worker() -> None:
    nodes = [Node(8, 2), Node(8, 1)]
    assert str(plan_workers(WorkerOptions(), nodes)) == "3 workers, 1 GPU each"
    assert plan_workers(WorkerOptions(num_gpus=0), nodes).use_gpu is False
    assert plan_workers(WorkerOptions(num_workers=2, num_gpus=2), nodes).num_workers == 2
    with pytest.raises(InputError, match="every GPU gets one worker"):
        plan_workers(WorkerOptions(num_workers=1, num_gpus=2), nodes)


def test_fewer_workers_will_do_where_that_is_said() -> None:
    assert plan_workers(WorkerOptions(num_workers=3, min_workers=2), [Node(2)]).min_workers == 2
    assert plan_workers(WorkerOptions(num_workers=3, min_workers=3), [Node(3)]) == WorkerPlan(3, False, 1.0)
    with pytest.raises(InputError, match="--min-workers 4 is more than the 3 workers"):
        plan_workers(WorkerOptions(num_workers=3, min_workers=4), [Node(8)])


def test_trainings_side_by_side_share_the_machine() -> None:
    assert plan_workers(WorkerOptions(num_workers=2), [Node(8)], at_a_time=2).cpus_per_worker == 2.0


def test_a_training_asks_for_what_its_settings_say() -> None:
    settings = Settings(ray_address="head:6379", num_workers=3, num_gpus=0, min_workers=2, stall_timeout=9.0)
    assert worker_options(settings) == WorkerOptions("head:6379", 3, 0, 2, 9.0)
