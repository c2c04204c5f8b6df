"""Whether the item table is sharded, and the estimated memory of a worker."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pnfrec_dist.config.settings import (
    CheckpointSettings,
    EncoderSettings,
    LossSettings,
    OptimizerSettings,
    SampledSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.model.precision import Precision
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.memory_plan import plan_step

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


def test_a_term_that_needs_negatives_is_refused_where_the_history_holds_them() -> None:
    encoder, loss = (
        replace(SETTINGS.encoder, history="all"),
        LossSettings(terms=("pnfrec_dist.losses.terms:CE_NEGATIVE=1",)),
    )
    every = replace(SETTINGS, encoder=encoder, loss=loss)
    side = data().history
    with pytest.raises(InputError, match=r"predicts dislikes, but encoder\.history all"):
        plan_step(every, TrainData(side, None), 240, 1)


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


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_signed_history_needs_two_more_rows_and_a_head(alpha: float) -> None:
    """Next likes and dislikes together are as many targets as tokens, as the next items of history all."""
    settings = replace(SETTINGS, encoder=replace(SETTINGS.encoder, history="signed"), loss=LossSettings(alpha))
    users = TrainData(data(length=21).history, None)
    plan = plan_step(settings, users, 1000, 1)
    of_all = plan_step(
        replace(settings, encoder=replace(SETTINGS.encoder, history="all"), loss=LossSettings()), users, 1000, 1
    )
    parameters = sum(p.numel() for p in build_model(1000, settings).encoders.parameters())
    assert plan.encoders == pytest.approx(4 * 4 * parameters, rel=0.001) and plan.logits == of_all.logits
    head = 8 * 20 * 4 * 2 * 16 if alpha else 0  # users, tokens, bytes, input and output, width
    assert plan.activations == of_all.activations + head


def test_parts_smaller_tiles_and_shards_need_less() -> None:
    settings = replace(SETTINGS, loss=LossSettings(alpha=0.5, tile_mib=0.01), item_table="replicated")
    plan = plan_step(settings, data(), 10_000, 2)
    parts = plan_step(replace(settings, train=TrainSettings(batch_size=8, accumulation=4)), data(), 10_000, 2)
    assert parts.activations < plan.activations / 3
    smaller = plan_step(replace(settings, loss=LossSettings(alpha=0.5, tile_mib=0.001)), data(), 10_000, 2)
    assert smaller.logits < plan.logits
    whole = plan_step(replace(settings, loss=LossSettings(alpha=0.5, exact_path="materialised")), data(), 10_000, 2)
    assert whole.logits == 4 * 80 * 10_001 > smaller.logits
    assert plan_step(replace(settings, item_table="sharded"), data(), 10_000, 2).total < plan.total


PEAK = """
import sys
from pathlib import Path
import numpy as np
import torch
from test_memory_plan import LARGE, ROWS, data
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.precision import Precision
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step
from pnfrec_dist.training.checkpoint_manager import Saver
settings, device = LARGE[sys.argv[1]], torch.device("cpu")
torch.set_num_threads(1)
users, model = data(), build_model(ROWS, settings)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
sampler = ItemSampler(settings.sampled, np.ones(ROWS + 1))
saver = Saver(Path(sys.argv[2]), World(), "peak", settings.checkpoint)
for step in range(2):
    draw = sampler.draw(1, 1, step) if settings.loss.cross_entropy == "sampled_softmax" else None
    parts = np.array_split(np.arange(8), settings.train.accumulation)
    batches = [train_batch(users, part, settings.encoder, needed_parts(settings.loss), device, draw) for part in parts]
    train_step(model, model.encoders, optimizer, batches, Objective(settings), World(), Requests())
    saver.save(model, optimizer, {"train_state": {"total_steps": step}}, step, 0)
saver.wait()
print(next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""
ROWS = 1_000_000
WIDE = replace(
    SETTINGS,
    encoder=EncoderSettings(hidden_size=64, max_length=10),
    checkpoint=CheckpointSettings(background=False),
)
LARGE = {
    "exact": WIDE,
    "exact, checkpoint in the background": replace(WIDE, checkpoint=CheckpointSettings()),
    "in parts, clipped": replace(
        WIDE, train=TrainSettings(batch_size=8, accumulation=4), optimizer=OptimizerSettings(max_gradient_norm=1.0)
    ),
    "sampled, clipped": replace(
        WIDE,
        loss=LossSettings(alpha=0.5, cross_entropy="sampled_softmax"),
        optimizer=OptimizerSettings(max_gradient_norm=1.0),
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    "case",
    [
        "exact",
        pytest.param("sampled, clipped", marks=pytest.mark.slow),
        pytest.param("in parts, clipped", marks=pytest.mark.slow),
        pytest.param("exact, checkpoint in the background", marks=pytest.mark.slow),
    ],
)
def test_the_total_is_about_a_process_own_peak_with_a_large_table(case: str, tmp_path: Path) -> None:
    """A million rows of 256 bytes. This process does not contain Ray, which needs about 150 MiB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, case, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    planned, peak = plan_step(LARGE[case], data(), ROWS, 1).total, 1024 * int(done.stdout)
    assert 0.97 * peak <= planned <= 1.3 * peak


def test_a_loss_over_some_items_is_planned_by_what_it_draws() -> None:
    def logits(kind: str, sampled: SampledSettings = SETTINGS.sampled) -> int:
        loss = LossSettings(cross_entropy=kind, exact_path="materialised")
        return plan_step(replace(SETTINGS, loss=loss, sampled=sampled), data(), 10**6, 1).logits

    assert logits("sampled_softmax") == logits("gbce") < logits("exact") / 8
    assert logits("sampled_softmax", SampledSettings(num_items=10**8)) > 10**9
    assert logits("sce", SampledSettings(sce_buckets=10**7)) > 10**9 > logits("sce")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_about_what_the_backward_pass_keeps(precision: Precision) -> None:
    """Bytes of all tensors that autograd saves for the encoders, each storage once."""
    settings = replace(
        SETTINGS,
        encoder=EncoderSettings(hidden_size=64, max_length=50),
        train=TrainSettings(batch_size=32, precision=precision),
    )
    model = build_model(100, settings).train()
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    vectors = torch.randn(32 * 50, 64).requires_grad_()
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with narrow, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.encoders.main(vectors, ((32, 50),))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = sum(size for place, size in saved.items() if place not in weights)
    only_positive = replace(settings, loss=LossSettings())
    users = data(users=32, length=51)
    planned = plan_step(only_positive, users, 100, 1).activations
    assert hidden.requires_grad
    assert 0.7 * kept <= planned <= 2 * kept
