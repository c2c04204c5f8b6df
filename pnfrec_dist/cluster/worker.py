"""What each worker of Ray Train does: it joins the process group and runs the loop."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero

from pnfrec_dist.cluster.event_board import BoardHooks
from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.training.events import Refused, WorkerStarted
from pnfrec_dist.training.loop import Hooks, Phase, TrainLoop


@dataclass(frozen=True)
class WorkerTask:
    """What all workers of a training get."""

    settings: Settings
    plan: WorkerPlan
    data_dir: str
    """of the prepared data set, a path or URI"""
    run_dir: str
    phase: Phase
    board: Any
    """handle of the event board"""


def run_worker(task: WorkerTask) -> None:
    """What Ray Train calls in each worker."""
    context = ray.train.get_context()
    settings, plan = task.settings, task.plan
    if not plan.use_gpu:
        torch.set_num_threads(max(1, int(plan.cpus_per_worker)))
    rank, size, device = context.get_world_rank(), context.get_world_size(), _device(plan)
    hooks = BoardHooks(task.board)
    node = ray.get_runtime_context().get_node_id()
    hooks.report(WorkerStarted(rank, size, node, os.getpid()))
    # Twice the watchdog's time, so that the watchdog acts first and says why.
    _join_process_group(rank, size, "nccl" if plan.use_gpu else "gloo", 2 * settings.stall_timeout)
    try:
        data = open_prepared(Location(task.data_dir))
        world, ways = World(rank, size, device), Hooks(hooks.report, hooks.should_stop, hooks.progress)
        TrainLoop(settings, data, Path(task.run_dir), world, ways).run(task.phase)
        world.barrier()  # no rank closes its connections while another one still reads
    except InputError as error:  # starting again would not help
        hooks.report(Refused(str(error)))
    finally:
        if size > 1:
            dist.destroy_process_group()


def _device(plan: WorkerPlan) -> torch.device:
    """The CPU, or the GPU that Ray gave this worker."""
    if not plan.use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # takes a second to import, and CPU workers do not need it

    device: Any = get_device()
    torch.cuda.set_device(device)
    return device


def _join_process_group(rank: int, size: int, backend: str, timeout: float) -> None:
    """Joins the workers into a process group; the store listens only on rank 0's node address.

    timeout: seconds after which an exchange with a silent rank fails.
    """
    if size == 1:
        return
    listener = socket.create_server((ray.util.get_node_ip_address(), 0)) if rank == 0 else None
    address: Any = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    host, port = address
    if listener:
        descriptor = listener.detach()
        store = dist.TCPStore(host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    else:
        store = dist.TCPStore(host, port, size, is_master=False)
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
