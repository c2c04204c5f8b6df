"""Where the item table goes, and how much memory a worker is said to need."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pnfrec_dist.config import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.training.loop import build_model
from pnfrec_dist.training.plan import plan_step

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=16, max_length=10),
    loss=LossSettings(alpha=0.5),
    train=TrainSettings(batch_size=8),
)


def data(users: int = 40, length: int = 11) -> TrainData:
    side = Ragged(np.arange(users + 1) * length, np.ones(users * length, dtype=np.int32))
    return TrainData(side, side)


def test_auto_shards_when_rows_outnumber_what_would_travel() -> None:
    """2 workers x 4 users x (10 + 10) targets = 160 hidden states, and 80 rows looked up: 240 against N."""
    assert not plan_step(SETTINGS, data(), 240, 2).is_sharded
    assert plan_step(SETTINGS, data(), 241, 2).is_sharded
    assert not plan_step(SETTINGS, data(), 10**6, 1).is_sharded, "one worker holds all there is"
    assert plan_step(replace(SETTINGS, item_table="sharded"), data(), 50, 2).is_sharded
    assert not plan_step(replace(SETTINGS, item_table="replicated"), data(), 10**6, 2).is_sharded


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_the_tables_bytes_are_those_of_its_tensors(kind: str) -> None:
    settings = replace(SETTINGS, item_table=kind)  # type: ignore[arg-type]
    plan = plan_step(settings, data(), 1001, 2)
    model = build_model(1001, settings, World(1, 2) if plan.is_sharded else None)
    weight = model.item_table.weight
    assert weight.numel() == (501 if kind == "sharded" else 1002) * 16
    assert plan.table == 4 * weight.numel() and plan.table_training == 3 * plan.table
    encoders = sum(p.numel() for p in model.encoders.parameters())
    assert plan.encoders == pytest.approx(4 * 4 * encoders, rel=0.02)


def test_parts_smaller_tiles_and_shards_need_less() -> None:
    settings = replace(SETTINGS, loss=LossSettings(alpha=0.5, tile_mib=0.01), item_table="replicated")
    plan = plan_step(settings, data(), 10_000, 2)
    parts = plan_step(replace(settings, train=TrainSettings(batch_size=8, accumulation=4)), data(), 10_000, 2)
    assert parts.activations < plan.activations / 3
    smaller = plan_step(replace(settings, loss=LossSettings(alpha=0.5, tile_mib=0.001)), data(), 10_000, 2)
    assert smaller.tile < plan.tile
    whole = plan_step(replace(settings, loss=LossSettings(alpha=0.5, exact_path="materialised")), data(), 10_000, 2)
    assert whole.tile == 2 * 4 * 80 * 10_001 > plan.tile
    assert plan_step(replace(settings, item_table="sharded"), data(), 10_000, 2).total < plan.total


def test_activations_are_about_what_the_backward_pass_keeps() -> None:
    """Bytes of all tensors that autograd saves for the encoders, each storage once."""
    settings = replace(
        SETTINGS, encoder=EncoderSettings(hidden_size=64, max_length=50), train=TrainSettings(batch_size=32)
    )
    model = build_model(100, settings).train()
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    vectors = torch.randn(32 * 50, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.encoders.positive(vectors, ((32, 50),))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = sum(size for place, size in saved.items() if place not in weights)
    only_positive = replace(settings, loss=LossSettings())
    users = data(users=32, length=51)
    planned = plan_step(only_positive, users, 100, 1).activations
    assert hidden.requires_grad
    assert 0.7 * kept <= planned <= 2 * kept
