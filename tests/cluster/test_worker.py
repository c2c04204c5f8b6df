"""Workers form a process group. Pipes replace Ray Train's broadcast."""

import multiprocessing
import socket
from multiprocessing.connection import Connection
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from pnfrec_dist.cluster import worker

TIMEOUT = 60.0


def join_and_sum(rank: int, pipe: Connection, results: Any) -> None:
    """Rank 0 sends rank 1 the address of its store. Then both compute the sum of 1 and 2."""

    def broadcast(address: Any) -> Any:
        if rank == 0:
            pipe.send(address)
            return address
        return pipe.recv()

    listeners, create = [], socket.create_server

    def listen(address: tuple[str, int]) -> socket.socket:
        listeners.append(address)
        return create(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "broadcast_from_rank_zero", broadcast)
        patch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
        patch.setattr(socket, "create_server", listen)
        worker._join_process_group(rank, 2, "gloo", TIMEOUT)
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    dist.destroy_process_group()
    results.put((rank, total.item(), listeners))


@pytest.mark.timeout(200)
def test_two_workers_join_over_a_store_on_the_nodes_own_address() -> None:
    context = multiprocessing.get_context("spawn")
    results, pipes = context.Queue(), context.Pipe()
    processes = [context.Process(target=join_and_sum, args=(rank, pipes[rank], results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=150) for _ in processes)
    for process in processes:
        process.join(TIMEOUT)
    assert found == [(0, 3.0, [("127.0.0.1", 0)]), (1, 3.0, [])]


def test_a_single_worker_joins_nobody() -> None:
    worker._join_process_group(0, 1, "gloo", TIMEOUT)
    assert not dist.is_initialized()
