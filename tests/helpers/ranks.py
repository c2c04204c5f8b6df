"""Processes with torch, and several ranks of a group on this machine, for tests."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pnfrec_dist.distributed import World

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def device_named(kind: str) -> torch.device:
    """The CPU, or the first GPU, which all ranks of a test share."""
    return torch.device("cuda", 0) if kind == "cuda" else torch.device(kind)


def with_torch() -> ForkServerContext:
    """A context that starts processes with torch already imported, because that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pnfrec_dist.training.loop", "pytest"])
    return context


def spawn(size: int, work: Callable[..., None], *args: object, device: str = "cpu", backend: str = "gloo") -> None:
    """Runs work(world, *args) on each of `size` ranks, and raises an error of a rank. work: a function of a module.

    device: "cpu" or "cuda". With gloo, ranks may share one GPU.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port, fd = listener.getsockname()[1], listener.detach()
    # This process holds the store, so that it outlives every rank.
    store = dist.TCPStore("127.0.0.1", port, size + 1, is_master=True, wait_for_workers=False, master_listen_fd=fd)
    with_torch()
    group = (size, port, device, backend)
    mp.start_processes(_rank, (group, work, args, dict(os.environ)), size, start_method="forkserver")  # type: ignore[attr-defined]
    del store


def _rank(
    rank: int,
    group: tuple[int, int, str, str],
    work: Callable[..., None],
    args: tuple[object, ...],
    environment: dict[str, str],
) -> None:
    size, port, device, backend = group
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    if device == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    work(World(rank, size, device_named(device)), *args)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo may abort when the interpreter ends
