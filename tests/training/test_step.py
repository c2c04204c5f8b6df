"""Ranks change nothing but rounding: 1, 2 and 3 gloo ranks end with the same float64 weights."""

import os
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from pnfrec_dist.config import (
    EncoderSettings,
    LossSettings,
    OptimizerSettings,
    SampledSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.batch import train_batch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.sampler import ItemSampler
from pnfrec_dist.distributed import World
from pnfrec_dist.training.loop import build_model
from pnfrec_dist.training.step import train_step

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5, dropout=0.0),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=7),
    optimizer=OptimizerSettings(max_gradient_norm=0.5),
)
CASES = {
    "whole": SETTINGS,
    "in parts": replace(SETTINGS, train=TrainSettings(batch_size=7, accumulation=3)),
    "sampled": replace(SETTINGS, loss=LossSettings(0.45, 0.25, cross_entropy="sampled_softmax")),
}
"""Of the paths of the exact cross-entropy, auto takes another one with a sharded table."""


def train(rank: int, size: int, sharded: bool, case: str, prepared: str, out: str, port: int = 0) -> None:
    """Two epochs of 30 users in batches of 7 (the last has 2, so one of three ranks is empty), in float64.

    Written: the loss terms of every step, all gradients and weights of the first step, all weights at the end.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if size > 1:
        store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world, settings = World(rank, size), CASES[case]
    data = open_prepared(Path(prepared))
    users = data.train()
    model = build_model(data.num_items, settings, world if sharded else World()).double()
    encoders = world.wrap(model.encoders)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    sampler = ItemSampler(SampledSettings(num_items=9, distribution="popularity"), data.item_counts())
    means, seen = [], {}

    def keep(prefix: str, values: dict[str, torch.Tensor | None]) -> None:
        for name, value in values.items():
            assert value is not None
            if sharded and name == "item_table.weight":
                rows = [b - a for a, b in pairwise(model.item_table.bounds)]
                value = world.gather_rows(value, rows)
            seen[f"{prefix}.{name}"] = value.clone()

    for epoch in (1, 2):
        order = epoch_order(settings.seed, epoch, len(users))
        for step in range(num_steps(len(order), 7)):
            mine = rank_share(global_batch(order, step, 7), rank, size)
            parts = np.array_split(mine, settings.train.accumulation)
            draw = sampler.draw(settings.seed, epoch, step) if case == "sampled" else None
            batches = [train_batch(users, part, settings.encoder, settings.loss, world.device, draw) for part in parts]
            stop = rank == 1 and step == 0
            sums = train_step(model, encoders, optimizer, batches, settings, world, stop)
            assert sums.stop == (size > 1 and step == 0)
            means.append(world.sum(sums.totals.clone()) / sums.counts)
            if epoch == 1 and step == 0:
                keep("gradient", {name: p.grad for name, p in model.named_parameters()})
                keep("first", {name: p.detach() for name, p in model.named_parameters()})
    keep("last", {name: p.detach() for name, p in model.named_parameters()})
    if rank == 0:
        save_file({**seen, "means": torch.stack(means)}, f"{out}/{size}-{sharded}-{case}.safetensors")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)  # past gloo's threads, one of which was seen to abort while the interpreter ended


def spawn(size: int, *args: object) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    fd = listener.detach()
    # Held here, the store outlives every rank.
    store = dist.TCPStore("127.0.0.1", port, size + 1, is_master=True, wait_for_workers=False, master_listen_fd=fd)
    mp.spawn(train, args=(size, *args, port), nprocs=size)  # type: ignore[attr-defined]
    del store


@pytest.fixture
def one_rank(prepared: Path, tmp_path: Path, case: str) -> dict[str, torch.Tensor]:
    """What one rank does with a step's users; in parts or not is to be the same."""
    case = "sampled" if case == "sampled" else "whole"
    train(0, 1, False, case, str(prepared), str(tmp_path))
    return load_file(tmp_path / f"1-False-{case}.safetensors")


@pytest.mark.parametrize(
    ("size", "sharded", "case"),
    [
        (2, False, "whole"),
        (3, False, "whole"),
        (2, True, "whole"),
        (3, True, "whole"),
        (2, True, "in parts"),
        (2, False, "sampled"),
        (2, True, "sampled"),
    ],
)
def test_ranks_equal_one_rank(
    prepared: Path, tmp_path: Path, one_rank: dict[str, torch.Tensor], size: int, sharded: bool, case: str
) -> None:
    """Lookup, losses, gradients, their norm, Adam: whoever holds the table, whoever reads the users."""
    spawn(size, sharded, case, str(prepared), str(tmp_path))
    several = load_file(tmp_path / f"{size}-{sharded}-{case}.safetensors")
    assert several.keys() == one_rank.keys()
    for name, expected in one_rank.items():
        torch.testing.assert_close(several[name], expected, rtol=0, atol=1e-9 if "last" in name else 1e-12)
    assert one_rank["means"].isfinite().all()
    lower = one_rank["means"][-1, 0] < one_rank["means"][0, 0]
    assert lower or case == "sampled", "two epochs on 30 users lower CE_p; an estimate from 9 draws is too noisy to say"


@pytest.mark.parametrize("case", ["in parts"])
def test_parts_equal_the_whole(prepared: Path, tmp_path: Path, one_rank: dict[str, torch.Tensor], case: str) -> None:
    train(0, 1, False, case, str(prepared), str(tmp_path))
    parts = load_file(tmp_path / "1-False-in parts.safetensors")
    for name, expected in one_rank.items():
        torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-9 if "last" in name else 1e-12)


def test_gradients_are_scaled_to_the_norm_and_no_further(prepared: Path) -> None:
    data = open_prepared(prepared)
    users = data.train()
    norms = {}
    for limit in (0.0, 0.01, 1e6):
        settings = replace(SETTINGS, optimizer=OptimizerSettings(max_gradient_norm=limit))
        model = build_model(data.num_items, settings)
        batch = train_batch(users, np.arange(30), settings.encoder, settings.loss, torch.device("cpu"))
        optimizer = torch.optim.Adam(model.parameters())
        train_step(model, model.encoders, optimizer, [batch], settings, World(), stop=False)
        norms[limit] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-5)
    assert norms[0.0] == norms[1e6] > 0.01
