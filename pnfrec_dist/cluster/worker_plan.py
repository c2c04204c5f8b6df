"""Which workers a run gets: what its flags mean on the machines that Ray sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pnfrec_dist.errors import InputError

DEFAULT_CPU_WORKERS = 2


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run: on GPUs (one each) or on CPUs."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    gpu_bytes: int = 0
    """memory of a GPU of this machine, where workers use GPUs"""
    min_workers: int | None = None
    """as few as this will do while others are missing; None: all are needed"""

    def __str__(self) -> str:
        each = "1 GPU" if self.use_gpu else f"{self.cpus_per_worker:g} CPU"
        least = f"{self.min_workers} to " if self.min_workers else ""
        workers = f"{self.num_workers} worker{'s' if self.num_workers != 1 else ''}"
        return f"{least}{workers}, {each} each"


class Node(NamedTuple):
    """What Ray sees of a machine."""

    cpus: float
    gpus: float = 0.0


def plan_workers(
    num_workers: int | None,
    num_gpus: int | None,
    nodes: Sequence[Node],
    min_workers: int | None = None,
    at_a_time: int = 1,
) -> WorkerPlan:
    """What --num-workers, --num-gpus and --min-workers mean on a cluster of these nodes.

    at_a_time: trainings with such workers. Raises InputError when the cluster has too few: Ray would wait for them
    without a word.
    """
    seen_cpus, seen_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if num_gpus is None:
        num_gpus = int(seen_gpus) if num_workers is None else 0
    if num_gpus > seen_gpus:
        raise InputError(
            f"--num-gpus {num_gpus}, but Ray sees {seen_gpus:g} GPUs; lower it, or use --num-workers for CPU workers"
        )
    if num_gpus and num_workers not in (None, num_gpus):
        raise InputError(f"--num-workers {num_workers} and --num-gpus {num_gpus} differ; every GPU gets one worker")
    workers = num_gpus or num_workers or DEFAULT_CPU_WORKERS
    least = min_workers or workers
    if least > workers:
        raise InputError(f"--min-workers {min_workers} is more than the {workers} workers wanted; lower it")
    cpus = _cpus_each(nodes, workers * at_a_time, use_gpu=num_gpus > 0)
    if least * cpus > seen_cpus:
        raise InputError(f"{least} workers need {least} CPUs, but Ray sees {seen_cpus:g}; lower --num-workers")
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if num_gpus and torch.cuda.is_available() else 0
    return WorkerPlan(workers, num_gpus > 0, cpus, gpu_bytes, min_workers if least < workers else None)


def _cpus_each(nodes: Sequence[Node], workers: int, *, use_gpu: bool) -> float:
    """As many CPUs for each as still let all workers find a place, each on one node; at least 1."""
    cpus = sum(node.cpus for node in nodes) // workers
    while cpus > 1:
        places = (min(node.cpus // cpus, node.gpus) if use_gpu else node.cpus // cpus for node in nodes)
        if sum(places) >= workers:
            break
        cpus -= 1
    return max(1.0, cpus)
