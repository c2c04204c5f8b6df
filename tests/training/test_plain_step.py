"""A training step equals a plain implementation with the same weights, in float64: padded windows,
nn.MultiheadAttention, all logits, exp and sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.sums import means_of
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.plain_step import IGNORE_INDEX, PlainModel, plain_step
from benchmarks.shapes import ml1m_like
from pnfrec_dist.config.settings import EncoderSettings, ExactPath, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.encoder import compile_encoders
from pnfrec_dist.model.precision import Precision
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step

ITEMS, USERS = 300, 25
SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=12, num_blocks=2, max_length=20, dropout=0.0), loss=LossSettings(0.45, 0.25)
)


def as_plain(ours: PNFRec) -> PlainModel:
    """The plain model with these weights."""
    plain = PlainModel(ITEMS, SETTINGS.encoder).double()
    plain.items.weight = nn.Parameter(ours.item_table.weight.detach().clone())
    for side, encoder in enumerate((ours.encoders.main, ours.encoders.negative)):
        assert encoder is not None
        plain.positions[side].load_state_dict(encoder.positions.state_dict())
        plain.norms[side].load_state_dict(encoder.norm.state_dict())
        for one, other in zip(plain.blocks[side], encoder.blocks, strict=True):  # type: ignore[arg-type]
            one.attention_norm.load_state_dict(other.attention_norm.state_dict())
            one.feed_forward_norm.load_state_dict(other.feed_forward_norm.state_dict())
            one.attention.out_proj.load_state_dict(other.output.state_dict())
            for number in (0, 3):
                one.feed_forward[number].load_state_dict(other.feed_forward[number].state_dict())
            with torch.no_grad():
                one.attention.in_proj_weight.copy_(torch.cat([other.query.weight, other.key_value.weight]))
                one.attention.in_proj_bias.copy_(torch.cat([other.query.bias, other.key_value.bias]))
    return plain


@pytest.mark.parametrize("path", ["materialised", "chunked", "tiled"])
def test_a_step_equals_the_plain_one(path: ExactPath) -> None:
    settings = replace(SETTINGS, loss=LossSettings(0.45, 0.25, exact_path=path, tile_mib=0.01))
    data, rows = ml1m_like(users=USERS, items=ITEMS), np.arange(USERS)
    ours = build_model(ITEMS, settings).double()
    plain = as_plain(ours)
    optimizer, plain_optimizer = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (ours, plain))
    batch = train_batch(data, rows, settings.encoder, needed_parts(settings.loss), torch.device("cpu"))
    sums = train_step(ours, ours.encoders, optimizer, [batch], Objective(settings), World(), Requests())
    loss = float(means_of(sums) @ torch.tensor([1.0, 0.45, 0.25], dtype=torch.float64))

    sides = []
    assert data.negative is not None
    for side in (data.history, data.negative):
        window = torch.from_numpy(side.newest(rows, 21)[0])
        sides.append((window[:, :-1], window[:, 1:].masked_fill(window[:, 1:] == 0, IGNORE_INDEX)))
    contrast = torch.from_numpy(data.negative.newest(rows, 21)[0])
    expected = plain_step(plain, plain_optimizer, sides[0], sides[1], contrast, settings.loss)

    assert loss == pytest.approx(expected, abs=1e-12)
    stepped = as_plain(ours)
    for (name, a), b in zip(stepped.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=name)
    assert ours.item_table.weight.grad is not None and plain.items.weight.grad is not None
    torch.testing.assert_close(ours.item_table.weight.grad, plain.items.weight.grad, rtol=0, atol=1e-12)


def one_step(settings: Settings) -> tuple[float, torch.Tensor]:
    """(loss, the table after one step of one seed) in the dtype that settings ask for."""
    data, rows = ml1m_like(users=USERS, items=ITEMS), np.arange(USERS)
    model = build_model(ITEMS, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batch = train_batch(data, rows, settings.encoder, needed_parts(settings.loss), torch.device("cpu"))
    sums = train_step(model, model.encoders, optimizer, [batch], Objective(settings), World(), Requests())
    weights = torch.tensor([1.0, 0.45, 0.25], dtype=torch.float64)
    return float(means_of(sums) @ weights), model.item_table.weight.detach()


def test_a_bfloat16_step_is_near_the_float32_one() -> None:
    loss, table_VD = one_step(replace(SETTINGS, train=TrainSettings(precision="bfloat16")))
    expected, expected_VD = one_step(SETTINGS)
    assert loss != expected, "autocast was on"
    assert loss == pytest.approx(expected, rel=1e-3)
    assert table_VD.dtype == torch.float32
    torch.testing.assert_close(table_VD, expected_VD, rtol=0, atol=2.1e-3)  # Adam's first step moves by lr or -lr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_has_dropout(precision: Precision) -> None:
    """Its draws are others than the eager step's."""
    encoder, train = replace(SETTINGS.encoder, dropout=0.1), TrainSettings(precision=precision)
    settings, data, losses = replace(SETTINGS, encoder=encoder, train=train), ml1m_like(users=USERS, items=ITEMS), []
    model = build_model(ITEMS, settings)
    compile_encoders(model.encoders)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = train_batch(data, np.arange(USERS), encoder, needed_parts(settings.loss), torch.device("cpu"))
    for _ in range(3):
        sums = train_step(model, model.encoders, optimizer, [batch], Objective(settings), World(), Requests())
        losses.append(sums.totals["ce_main"])
    assert len(set(losses)) == 3 and np.isfinite(losses).all()


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones_whatever_their_shapes() -> None:
    """Batches differ in users, groups and tokens. After 8 compilations of a function, torch would give up."""
    data = ml1m_like(users=400, items=ITEMS)
    compiled, eager = build_model(ITEMS, SETTINGS), build_model(ITEMS, SETTINGS)
    compile_encoders(compiled.encoders)
    rng, graphs = np.random.default_rng(0), []
    for number in range(16):
        rows = rng.permutation(400)[: 40 + 17 * number]
        batch = train_batch(data, rows, SETTINGS.encoder, needed_parts(SETTINGS.loss), torch.device("cpu"))
        totals, gradients = [], []
        for model in (compiled, eager):
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            sums = train_step(model, model.encoders, optimizer, [batch], Objective(SETTINGS), World(), Requests())
            totals.append(sums.totals)
            gradients.append(model.item_table.weight.grad)
        torch.testing.assert_close(*totals, rtol=1e-5, atol=0)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] <= 2 * graphs[0]
