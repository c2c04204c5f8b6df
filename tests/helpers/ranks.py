"""Processes with torch, and several ranks of a gloo group on this machine, for tests."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pnfrec_dist.distributed import World


def with_torch() -> ForkServerContext:
    """A context that starts processes with torch already imported, because that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pnfrec_dist.training.loop", "pytest"])
    return context


def spawn(size: int, work: Callable[..., None], *args: object) -> None:
    """Runs work(world, *args) on each of `size` ranks, and raises an error of a rank. work: a function of a module."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, fd = listener.getsockname()[1], listener.detach()
    # This process holds the store, so that it outlives every rank.
    store = dist.TCPStore("127.0.0.1", port, size + 1, is_master=True, wait_for_workers=False, master_listen_fd=fd)
    with_torch()
    mp.start_processes(_rank, (size, port, work, args, dict(os.environ)), size, start_method="forkserver")  # type: ignore[attr-defined]
    del store


def _rank(
    rank: int, size: int, port: int, work: Callable[..., None], args: tuple[object, ...], environment: dict[str, str]
) -> None:
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    work(World(rank, size), *args)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo may abort when the interpreter ends
