"""Several ranks of a gloo group on this machine, for tests."""

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pnfrec_dist.distributed import World


def spawn(size: int, work: Callable[..., None], *args: object) -> None:
    """work(world, *args) on each of `size` ranks; work is a function of a module, and an error in a rank is raised."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, fd = listener.getsockname()[1], listener.detach()
    # Held here, the store outlives every rank.
    store = dist.TCPStore("127.0.0.1", port, size + 1, is_master=True, wait_for_workers=False, master_listen_fd=fd)
    mp.spawn(_rank, args=(size, port, work, args), nprocs=size)  # type: ignore[attr-defined]
    del store


def _rank(rank: int, size: int, port: int, work: Callable[..., None], args: tuple[object, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    work(World(rank, size), *args)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # past gloo's threads, one of which was seen to abort while the interpreter ended
