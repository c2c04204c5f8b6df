"""Ranks change nothing but rounding: 1, 2 and 3 gloo ranks end with the same float64 weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import spawn
from helpers.sums import means_of
from safetensors.torch import load_file, save_file

from pnfrec_dist.config.settings import (
    EncoderSettings,
    LossSettings,
    OptimizerSettings,
    SampledSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.prepared import TrainData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step

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
    "signed": replace(SETTINGS, encoder=replace(SETTINGS.encoder, history="signed")),
    "both": replace(
        SETTINGS,
        encoder=replace(SETTINGS.encoder, history="both"),
        loss=LossSettings(0.45, 0.25, ("ce_likes=0.7",)),
    ),
    "sce of everything": replace(
        SETTINGS,
        loss=LossSettings(0.45, 0.25, cross_entropy="sce"),
        sampled=SampledSettings(sce_buckets=2, sce_targets=999, sce_items=999),
    ),
}
"""With a sharded table, auto chooses another path of the exact cross-entropy."""
JOBS = {
    2: [
        (False, "whole"),
        (True, "whole"),
        (True, "in parts"),
        (False, "sampled"),
        (True, "sampled"),
        (True, "signed"),
        (True, "both"),
    ],
    3: [(False, "whole"), (True, "whole"), (True, "sce of everything")],
}
"""Ranks -> (item table sharded, case)."""


def train_all(world: World, prepared: str, out: str) -> None:
    for sharded, case in JOBS[world.size]:
        train(world, sharded, case, prepared, out)


def train(world: World, sharded: bool, case: str, prepared: str, out: str) -> None:
    """40 steps: 8 epochs of 30 users in batches of 7 (the last has 2, so one of three ranks is empty), in float64.

    Writes the loss terms of every step, all gradients and weights of the first step, and all weights at the end.
    """
    settings = CASES[case]
    data = open_prepared(Path(prepared))
    users = data.train(settings.encoder.history)
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

    for epoch in range(1, 9):
        order = epoch_order(settings.seed, epoch, len(users))
        for step in range(num_steps(len(order), 7)):
            mine = rank_share(global_batch(order, step, 7), world.rank, world.size)
            parts = np.array_split(mine, settings.train.accumulation)
            draw = sampler.draw(settings.seed, epoch, step) if case == "sampled" else None
            batches = [
                train_batch(users, part, settings.encoder, needed_parts(settings.loss), world.device, draw)
                for part in parts
            ]
            requests = Requests(stop=world.rank == 1 and step == 0, save=world.rank == 1 and step == 1)
            sums = train_step(model, encoders, optimizer, batches, Objective(settings), world, requests)
            assert sums.requests == Requests(world.size > 1 and step == 0, world.size > 1 and step == 1)
            assert sums.is_finite
            means.append(means_of(sums))  # two users may have no negatives
            if epoch == 1 and step == 0:
                keep("gradient", {name: p.grad for name, p in model.named_parameters()})
                keep("first", {name: p.detach() for name, p in model.named_parameters()})
    keep("last", {name: p.detach() for name, p in model.named_parameters()})
    if world.is_main:
        save_file({**seen, "means": torch.stack(means)}, f"{out}/{world.size}-{sharded}-{case}.safetensors")


@pytest.fixture(scope="module")
def written(prepared_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that one, two and three ranks wrote."""
    out = tmp_path_factory.mktemp("ranks")
    prepared = str(prepared_writer(out / "prepared" / "tiny"))
    for case in CASES:
        train(World(), False, case, prepared, str(out))
    for size in JOBS:
        spawn(size, train_all, prepared, str(out))
    return out


def require_equal(written: Path, file: str, expected_case: str) -> dict[str, torch.Tensor]:
    """Equal to 1e-12 after the first step. Over 40 steps, Adam increases roundings to 1e-9 at most."""
    found = load_file(written / f"{file}.safetensors")
    expected = load_file(written / f"1-False-{expected_case}.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=1e-12 if name.startswith(("gradient", "first")) else 1e-9, msg=name
        )
    return expected


@pytest.mark.parametrize(
    ("size", "sharded", "case"), [(size, sharded, case) for size, jobs in JOBS.items() for sharded, case in jobs]
)
def test_ranks_equal_one_rank(written: Path, size: int, sharded: bool, case: str) -> None:
    """Lookup, losses, gradients, their norm and Adam do not depend on how ranks share the table and the users."""
    means = require_equal(
        written, f"{size}-{sharded}-{case}", case if case in ("sampled", "signed", "both") else "whole"
    )["means"]
    assert means.isfinite().all()
    lower = means[-5:, 0].mean() < means[:5, 0].mean()
    assert lower or case == "sampled", "8 epochs on 30 users lower CE_p; an estimate from 9 draws is too noisy"


@pytest.mark.parametrize("case", ["in parts", "sce of everything"])
def test_parts_and_buckets_of_everything_equal_the_whole(written: Path, case: str) -> None:
    require_equal(written, f"1-False-{case}", "whole")


def test_gradients_are_scaled_to_the_norm_and_no_further(prepared: Path) -> None:
    data = open_prepared(prepared)
    users = data.train()
    norms = {}
    for limit in (0.0, 0.01, 1e6):
        settings = replace(SETTINGS, optimizer=OptimizerSettings(max_gradient_norm=limit))
        model = build_model(data.num_items, settings)
        batch = train_batch(users, np.arange(30), settings.encoder, needed_parts(settings.loss), torch.device("cpu"))
        optimizer = torch.optim.Adam(model.parameters())
        train_step(model, model.encoders, optimizer, [batch], Objective(settings), World(), Requests())
        norms[limit] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert norms[0.01] == pytest.approx(0.01, rel=1e-5)
    assert norms[0.0] == norms[1e6] > 0.01


def test_the_table_gradient_of_a_step_is_one_tensor(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a million items, a copy would be the largest tensor in memory."""
    data = open_prepared(prepared)
    model = build_model(data.num_items, SETTINGS)
    batch = train_batch(data.train(), np.arange(30), SETTINGS.encoder, needed_parts(SETTINGS.loss), torch.device("cpu"))
    places = []
    whole = ItemTable.collect_gradients

    def collect(table: ItemTable) -> None:
        assert table.weight.grad is not None
        softmax = table.weight.grad.clone()
        places.append(table.weight.grad.data_ptr())
        whole(table)
        assert not torch.equal(table.weight.grad, softmax), "the lookup's gradient was added"

    monkeypatch.setattr(ItemTable, "collect_gradients", collect)
    train_step(
        model, model.encoders, torch.optim.Adam(model.parameters()), [batch], Objective(SETTINGS), World(), Requests()
    )
    gradient = model.item_table.weight.grad
    assert gradient is not None and [gradient.data_ptr()] == places


def train_on_few_items(world: World, prepared: str) -> None:
    """2 items have 3 rows, which 4 ranks share: rank 0 has none."""
    users, loss = open_prepared(Path(prepared)).train(), SETTINGS.loss
    assert users.negative is not None
    two = TrainData(*(Ragged(side.offsets, 1 + side.values % 2) for side in (users.history, users.negative)))
    whole, shared = build_model(2, SETTINGS).double(), build_model(2, SETTINGS, world).double()
    batch = train_batch(two, np.arange(world.rank, 20, world.size), SETTINGS.encoder, needed_parts(loss), world.device)
    for model in (whole, shared):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train_step(model, world.wrap(model.encoders), optimizer, [batch], Objective(SETTINGS), world, Requests())
    rows = [b - a for a, b in pairwise(shared.item_table.bounds)]
    assert rows == [0, 1, 1, 1]
    found = world.gather_rows(shared.item_table.weight.detach(), rows)
    torch.testing.assert_close(found, whole.item_table.weight.detach(), rtol=0, atol=1e-12)


def test_ranks_may_outnumber_rows(prepared: Path) -> None:
    spawn(4, train_on_few_items, str(prepared))


def break_one_rank(world: World, prepared: str, where: str, fused: bool) -> None:
    """A nan in one rank's loss or gradient: no rank changes anything, and all ranks report it."""
    data = open_prepared(Path(prepared))
    model = build_model(data.num_items, SETTINGS, world)
    batch = train_batch(
        data.train(), np.arange(world.rank, 30, 2), SETTINGS.encoder, needed_parts(SETTINGS.loss), world.device
    )

    def broken(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_fill(0, torch.tensor([3]), torch.inf)

    if world.rank == 1 and where == "loss":
        model.encoders.main.norm.register_forward_hook(lambda *call: broken(call[2]))  # type: ignore[arg-type]
    elif world.rank == 1:
        model.item_table.weight.register_hook(broken)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    sums = train_step(model, world.wrap(model.encoders), optimizer, [batch], Objective(SETTINGS), world, Requests())
    assert not sums.is_finite and all(map(math.isfinite, sums.totals.values())) == (where == "gradient")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(prepared: Path, where: str, fused: bool) -> None:
    """Moments and their count of steps, too, whether the optimizer or the host decides."""
    spawn(2, break_one_rank, str(prepared), where, fused)
