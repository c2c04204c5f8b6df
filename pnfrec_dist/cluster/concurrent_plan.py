"""How many trainings run at a time, as trials of a sweep or in a reproduction, and what each of them gets."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan, plan_workers

SHARE_STEPS = 10_000
"""Ray counts GPUs in steps of 1 / SHARE_STEPS."""


@dataclass(frozen=True)
class ConcurrentPlan:
    """Workers of each training, and how many trainings run at a time."""

    workers: WorkerPlan
    concurrent: int
    what: Literal["trial", "training"]

    def __str__(self) -> str:
        at_a_time = f"{self.concurrent} {self.what}s at a time" if self.concurrent > 1 else f"one {self.what} at a time"
        return f"{at_a_time}, each with {self.workers}"

    def fewer(self, count: int) -> str:
        """The flag with which `count` run at a time, in all or (if they share GPUs) on each GPU."""
        is_shared = self.workers.gpu_share < 1
        if self.what == "trial":
            return f"--gpus-per-trial {_share(count):g}" if is_shared else f"--max-concurrent {count}"
        gpus = math.ceil(self.concurrent * self.workers.gpu_share - 1e-6) if is_shared else 1
        return f"--at-a-time {count * gpus}"


def plan_concurrent(
    nodes: Sequence[Node], each: WorkerOptions, most: int | None, what: Literal["trial", "training"]
) -> ConcurrentPlan:
    """As many trainings as fit, and at most `most`. Each worker needs a CPU, or a GPU or a share of one, and a CPU.

    each: its num_workers or num_gpus is given. One that is too large for the nodes is refused as for one training.
    """
    if each.num_gpus:
        places = sum(node.places(1.0, each.gpu_share) for node in nodes)
    else:
        places = sum(node.cpus for node in nodes)
    fitting = int(places // (each.num_gpus or each.num_workers or 1))
    concurrent = max(1, min(fitting, most or fitting))
    workers = plan_workers(each, nodes, at_a_time=concurrent)
    return ConcurrentPlan(dataclasses.replace(workers, in_this_process=workers.num_workers == 1), concurrent, what)


def gpu_share(nodes: Sequence[Node], per_gpu: int, most: int | None) -> float:
    """The part of a GPU that each single worker gets, if as many run at a time as may.

    per_gpu: number of workers that fit into a GPU's memory; most: number of workers that may run at a time.
    Each worker also needs a CPU. There must be a GPU.
    """
    with_gpus = [node for node in nodes if node.gpus >= 1]
    cpus = min(int(node.cpus // node.gpus) for node in with_gpus)
    wanted = per_gpu if most is None else math.ceil(most / sum(int(node.gpus) for node in with_gpus))
    return _share(max(1, min(per_gpu, cpus, wanted)))


def _share(count: int) -> float:
    """1 / count, rounded down to what Ray counts."""
    return SHARE_STEPS // count / SHARE_STEPS
