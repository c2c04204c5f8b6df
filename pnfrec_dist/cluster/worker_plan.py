"""Which workers a run gets: what its flags mean on this machine or on a cluster. Does not import Ray."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError

DEFAULT_CPU_WORKERS = 2


@dataclass(frozen=True)
class WorkerOptions:
    """What a command requests: its workers, and the Ray that runs them."""

    address: str = ""
    """of a running Ray cluster; empty: this machine"""
    num_workers: int | None = None
    """None: see plan_workers"""
    num_gpus: int | None = None
    min_workers: int | None = None
    """minimum number of workers after a machine is lost; None: all are needed"""
    stall_timeout: float | None = None
    """seconds that a worker of Ray Train may be silent; None: Ray's default"""
    gpu_share: float = 1.0
    """part of a GPU that each GPU worker gets"""


def worker_options(settings: Settings) -> WorkerOptions:
    """What a training requests."""
    return WorkerOptions(
        settings.ray_address, settings.num_workers, settings.num_gpus, settings.min_workers, settings.stall_timeout
    )


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run: on GPUs (one each) or on CPUs."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    gpu_bytes: int = 0
    """memory of a GPU of this machine, if workers use GPUs"""
    min_workers: int | None = None
    """minimum number of workers while others are missing; None: all are needed"""
    in_this_process: bool = False
    """a single worker that needs no Ray"""
    gpu_share: float = 1.0
    """part of a GPU that each worker gets, if workers use GPUs"""

    def __str__(self) -> str:
        cpus = f"{self.cpus_per_worker:g} CPU{'s' if self.cpus_per_worker > 1 else ''}"
        share = cpus if not self.use_gpu else "1 GPU" if self.gpu_share == 1 else f"{self.gpu_share:g} GPU, {cpus}"
        least = f"{self.min_workers} to " if self.min_workers else ""
        workers = f"{self.num_workers} worker{'s' if self.num_workers != 1 else ''}"
        return f"{least}{workers}, {share}{' each' if self.num_workers != 1 else ''}"


class Node(NamedTuple):
    """A machine that workers may run on."""

    cpus: float
    gpus: float = 0.0

    def places(self, cpus: float, gpu_share: float) -> float:
        """Number of GPU workers that it has room for, each with this many CPUs and this part of one GPU."""
        return min(self.cpus // cpus, self.gpus * on_one_gpu(gpu_share))


def on_one_gpu(gpu_share: float) -> int:
    """Number of workers on one GPU that each have this part of it."""
    return int(1 / gpu_share + 1e-6)


def this_machine(num_workers: int | None = None) -> Node:
    """This machine. A CPU worker counts as one CPU even if there are fewer cores than workers."""
    return Node(max(os.cpu_count() or 1, num_workers or DEFAULT_CPU_WORKERS), torch.cuda.device_count())


def gpu_memory() -> int:
    """Bytes of the smallest GPU of this machine; 0 without a GPU."""
    gpus = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus), default=0)


def plan_workers(options: WorkerOptions, nodes: Sequence[Node], at_a_time: int = 1) -> WorkerPlan:
    """What --num-workers, --num-gpus and --min-workers mean on these nodes.

    at_a_time: number of such trainings at the same time. Raises InputError if there are too few CPUs or GPUs; Ray
    itself would wait without a message.
    """
    num_workers, num_gpus, min_workers = options.num_workers, options.num_gpus, options.min_workers
    seen_cpus, seen_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if num_gpus is None:
        num_gpus = int(seen_gpus) if num_workers is None else 0
    if num_gpus > seen_gpus:
        raise InputError(
            f"--num-gpus {num_gpus}, but {seen_gpus:g} GPUs were found; lower it, or use --num-workers for CPU workers"
        )
    if num_gpus and num_workers not in (None, num_gpus):
        raise InputError(f"--num-workers {num_workers} and --num-gpus {num_gpus} differ; every GPU gets one worker")
    workers = num_gpus or num_workers or DEFAULT_CPU_WORKERS
    least = min_workers or workers
    if least > workers:
        raise InputError(f"--min-workers {min_workers} is more than the {workers} workers of the run; lower it")
    gpu_share = options.gpu_share if num_gpus else 1.0
    cpus = _cpus_each(nodes, workers * at_a_time, gpu_share if num_gpus else None)
    if least * cpus > seen_cpus:
        raise InputError(f"{least} workers need {least} CPUs, but {seen_cpus:g} were found; lower --num-workers")
    least_workers = min_workers if least < workers else None
    gpu_bytes = gpu_memory() if num_gpus else 0
    return WorkerPlan(workers, num_gpus > 0, cpus, gpu_bytes, least_workers, gpu_share=gpu_share)


def _cpus_each(nodes: Sequence[Node], workers: int, gpu_share: float | None) -> float:
    """The most CPUs per worker with which all workers still fit on the nodes; at least 1. gpu_share: None on CPUs."""
    cpus = sum(node.cpus for node in nodes) // workers
    while cpus > 1:
        places = (node.places(cpus, gpu_share) if gpu_share else node.cpus // cpus for node in nodes)
        if sum(places) >= workers:
            break
        cpus -= 1
    return max(1.0, cpus)
