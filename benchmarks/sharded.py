"""python -m benchmarks.sharded '<json>': runs training steps of gloo workers on this machine; the last line is JSON.

Bytes sent are counted by the loopback device during the timed steps, per worker and step.
"""

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.cases import Result
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step

LENGTH = 33
"""Items of each side of each user: 32 targets on either."""


def run(rank: int, size: int, port: int, out: str, request: dict) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world, items, targets = World(rank, size), request["items"], request["targets"]
    settings = Settings(encoder=EncoderSettings(hidden_size=request["width"]), loss=LossSettings(0.45, 0.25))
    users = targets // (2 * (LENGTH - 1))
    rng = np.random.default_rng(rank)
    offsets = np.arange(users + 1) * LENGTH
    data = TrainData(*(Ragged(offsets, rng.integers(1, items + 1, offsets[-1], dtype=np.int32)) for _ in range(2)))
    batch = train_batch(data, np.arange(users), settings.encoder, needed_parts(settings.loss), world.device)
    model = build_model(items, settings, world if request["sharded"] else None)
    encoders = world.wrap(model.encoders)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    objective = Objective(settings)
    seconds, sent, losses = [], [], []
    for _ in range(1 + request["steps"]):
        world.barrier()
        started, before = time.perf_counter(), _loopback_bytes()
        sums = train_step(model, encoders, optimizer, [batch], objective, world, Requests())
        world.barrier()
        seconds.append(time.perf_counter() - started)
        sent.append((_loopback_bytes() - before) / size)
        losses.append(objective.means(sums.totals, sums.counts)["train/ce_positive"])
    table = [model.item_table.weight, *optimizer.state[model.item_table.weight].values()]
    result = {
        "seconds": statistics.median(seconds[1:]),
        "bytes_sent": statistics.median(sent[1:]),
        "table_bytes": sum(t.numel() * t.element_size() for t in table),
        "peak_mib": _peak_mib(),
        "ce_positive": losses,
    }
    every = world.gather(result)
    if rank == 0:
        Path(out).write_text(json.dumps(every))
    world.barrier()
    os._exit(0)


def _loopback_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


def sharded(workers: int, **request: object) -> Result:
    """request: items, width, targets (a worker's, of both sides), steps, sharded.

    The result holds the largest values of all workers.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port, fd = listener.getsockname()[1], listener.detach()
    store = dist.TCPStore("127.0.0.1", port, workers + 1, True, wait_for_workers=False, master_listen_fd=fd)
    with tempfile.TemporaryDirectory() as directory:
        out = str(Path(directory) / "result.json")
        mp.spawn(run, (workers, port, out, request), nprocs=workers)  # type: ignore[attr-defined]
        every = json.loads(Path(out).read_text())
    del store
    worst = {key: max(result[key] for result in every) for key in ("seconds", "bytes_sent", "table_bytes", "peak_mib")}
    return {**worst, "ce_positive": every[0]["ce_positive"]}


if __name__ == "__main__":
    print(json.dumps(sharded(**json.loads(sys.argv[1]))))
