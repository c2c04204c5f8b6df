import numpy as np
import pytest
import torch

from pnfrec_dist.config import ContrastiveSettings, EncoderSettings, LossSettings
from pnfrec_dist.data.batch import train_batch
from pnfrec_dist.data.prepared import Ragged, TrainData
from pnfrec_dist.losses.objective import loss_totals, term_weights
from pnfrec_dist.model.dual_encoder import DualEncoder

ENCODER = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, dropout=0.0)
VARIANTS = {
    "pnfrec": LossSettings(0.45, 0.25),
    "pnfrec_pn": LossSettings(0.45, 0.0),
    "pnfrec_pc": LossSettings(0.0, 0.25),
    "sasrec_p": LossSettings(0.0, 0.0),
}


def build(loss: LossSettings) -> DualEncoder:
    return DualEncoder(9, ENCODER, loss, torch.Generator().manual_seed(0))


def data() -> TrainData:
    offsets = np.array([0, 3, 5])
    return TrainData(Ragged(offsets, np.array([1, 2, 3, 4, 5])), Ragged(offsets, np.array([6, 7, 8, 9, 1])))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_gets_a_gradient(name: str) -> None:
    """DDP waits for all of them; what a variant does not use must not exist."""
    loss = VARIANTS[name]
    model = build(loss)
    assert (model.negative_encoder is not None) == (name in ("pnfrec", "pnfrec_pn"))
    for rows in (np.array([0, 1]), np.array([], dtype=np.int64)):
        batch = train_batch(data(), rows, ENCODER, loss, torch.device("cpu"))
        negative = batch.negative.inputs_BL if batch.negative else None
        positive_BLD, negative_BLD = model(batch.positive.inputs_BL, negative)
        totals, counts = loss_totals(positive_BLD, negative_BLD, batch, model.item_table, ContrastiveSettings())
        model.zero_grad()
        (totals * term_weights(loss)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert (counts > 0).tolist() == ([len(rows) > 0, loss.alpha > 0, loss.beta > 0] if len(rows) else [False] * 3)


def test_the_padding_row_is_zero_and_never_learns() -> None:
    loss = VARIANTS["pnfrec"]
    model = build(loss)
    batch = train_batch(data(), np.array([0, 1]), ENCODER, loss, torch.device("cpu"))
    assert batch.negative is not None
    positive_BLD, negative_BLD = model(batch.positive.inputs_BL, batch.negative.inputs_BL)
    totals, _ = loss_totals(positive_BLD, negative_BLD, batch, model.item_table, ContrastiveSettings())
    totals.sum().backward()
    assert (model.item_table.weight[0] == 0).all()
    assert model.item_table.weight.grad is not None
    assert (model.item_table.weight.grad[0] == 0).all()
    assert (model.item_table.weight.grad[1:] != 0).any(dim=1).all()


def test_encoders_have_own_positions_and_start_apart() -> None:
    model = build(VARIANTS["pnfrec"])
    assert model.negative_encoder is not None
    assert not torch.equal(model.positive_encoder.positions.weight, model.negative_encoder.positions.weight)


def test_scores_are_of_the_last_position_and_exclude_padding() -> None:
    model = build(VARIANTS["pnfrec"]).eval()
    inputs_BL, last_B = torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([2, 0])
    scores_BV = model.scores(inputs_BL, last_B)
    assert scores_BV.shape == (2, 10)
    assert (scores_BV[:, 0] == -torch.inf).all()
    alone = model.scores(torch.tensor([[4]]), torch.tensor([0]))
    torch.testing.assert_close(scores_BV[1:, 1:], alone[:, 1:])
    changed = model.scores(torch.tensor([[1, 2, 5]]), torch.tensor([2]))
    assert not torch.allclose(scores_BV[0, 1:], changed[0, 1:])
