from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import history_batch, train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import encoded, needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreWeights

ENCODER = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, dropout=0.0)
SIGNED, BOTH = replace(ENCODER, history="signed"), replace(ENCODER, history="both")
VARIANTS = {
    "pnfrec": LossSettings(0.45, 0.25),
    "pnfrec_pn": LossSettings(0.45, 0.0),
    "pnfrec_pc": LossSettings(0.0, 0.25),
    "sasrec_p": LossSettings(0.0, 0.0),
    "pnfrec_signed": LossSettings(0.0, 0.0),
    "pnfrec_signed with all options": LossSettings(0.45, 0.25),
    "pnfrec_plus": LossSettings(1.0, 0.0, ("ce_likes=1",)),
    "pnfrec_plus with all options": LossSettings(1.0, 0.25, ("ce_likes=1",)),
}
CPU = torch.device("cpu")


def build(loss: LossSettings, encoder: EncoderSettings = ENCODER) -> PNFRec:
    return PNFRec(9, encoder, torch.Generator().manual_seed(0), with_negative=loss.alpha > 0)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.cumsum([0] + [len(r) for r in rows]), np.array([i for r in rows for i in r], dtype=np.int32))


def totals_after_backward(
    model: PNFRec, loss: LossSettings, rows: list[int], encoder: EncoderSettings = ENCODER
) -> dict[str, float]:
    """The total of each term for some of two users. Leaves gradients in the model."""
    data = TrainData(ragged([[1, 2, 3], [4, 5]]), ragged([[6, 7, 8], [9, 1]]))
    if encoder in (SIGNED, BOTH):
        data = TrainData(ragged([[1, -6, 2, 3, -7], [4, 5, -9], [-1, -2]]), None)
    batch = train_batch(data, np.array(rows, dtype=np.int64), encoder, needed_parts(loss), CPU)
    vectors_UD = model.item_table.lookup(batch.items_U)
    objective = Objective(Settings(encoder=encoder, loss=loss))
    tensors = encoded(model.encoders, vectors_UD, batch)
    weighted, totals = objective.loss(tensors, model.item_table, objective.weights_J)
    weighted.backward()
    model.item_table.collect_gradients()
    assert ((objective.counts(batch) > 0) == (totals > 0)).all()
    return dict(zip(objective.terms, totals.tolist(), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_every_variant_gets_a_gradient(name: str) -> None:
    """DDP waits for all gradients, so parameters that a variant does not use must not exist."""
    loss, encoder = VARIANTS[name], SIGNED if "signed" in name else BOTH if "plus" in name else ENCODER
    for rows in ([0, 1], []):
        model = build(loss, encoder)
        assert (model.encoders.negative is not None) == (name in ("pnfrec", "pnfrec_pn"))
        assert (model.encoders.dislike_head is not None) == (name == "pnfrec_signed with all options" or "plus" in name)
        assert (model.encoders.main.signs is not None) == (encoder is not ENCODER)
        assert (model.encoders.likes is not None) == (encoder is BOTH)
        totals = totals_after_backward(model, loss, rows, encoder)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert totals.keys() == loss.weights.keys()
        assert all((total > 0) == bool(rows) for total in totals.values())


def test_tokens_without_a_next_like_give_every_parameter_a_gradient() -> None:
    """A rank may have only users with dislikes alone."""
    model, loss = build(VARIANTS["pnfrec_signed"], SIGNED), VARIANTS["pnfrec_signed"]
    assert totals_after_backward(model, loss, [2], SIGNED) == {"ce_main": 0.0}
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_the_padding_row_is_zero_and_never_learns() -> None:
    model = build(VARIANTS["pnfrec"])
    totals_after_backward(model, VARIANTS["pnfrec"], [0, 1])
    gradient = model.item_table.weight.grad
    assert (model.item_table.weight[0] == 0).all()
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[1:] != 0).any(dim=1).all()


def test_encoders_have_own_positions_and_start_apart() -> None:
    encoders = build(VARIANTS["pnfrec"]).encoders
    assert encoders.negative is not None
    assert not torch.equal(encoders.main.positions.weight, encoders.negative.positions.weight)


def test_last_hidden_is_of_the_newest_item_of_each_user() -> None:
    model = build(VARIANTS["pnfrec"]).eval()

    def last_hidden(*rows: list[int]) -> Tensor:
        return model.last_hidden(history_batch(ragged(list(rows)), np.arange(len(rows)), 4, CPU))

    together_BD = last_hidden([1, 2, 3], [4], [], [5, 6])
    assert together_BD.shape == (4, 8)
    for b, row in enumerate(([1, 2, 3], [4], [], [5, 6])):
        torch.testing.assert_close(together_BD[b : b + 1], last_hidden(row))
    assert not torch.allclose(together_BD[0], last_hidden([1, 2, 5])[0])


def test_the_head_for_dislikes_reads_the_main_encoder() -> None:
    """It is a linear map of the hidden state that predicts the next like; both depend on the signs."""
    model = build(VARIANTS["pnfrec"], SIGNED).eval()
    batch, other = (history_batch(ragged([row]), np.array([0]), 8, CPU) for row in ([1, -2, 3], [1, 2, 3]))
    head = model.encoders.dislike_head
    assert head is not None
    expected_BD = model.last_hidden(batch) @ head.weight.T + head.bias
    torch.testing.assert_close(model.last_negative_hidden(batch), expected_BD)
    assert not torch.allclose(model.last_hidden(batch), model.last_hidden(other))


def test_the_score_of_both_is_the_weighted_sum_of_two_models() -> None:
    """One encoder reads all with the second half of the vectors, the other the likes with the first half; gamma
    subtracts what the head gives from the former. A user without likes has the former's score alone."""
    encoder, loss = BOTH, VARIANTS["pnfrec_plus"]
    model = build(loss, encoder).eval()
    model.encoders.weights = ScoreWeights(0.3)
    table, parts = model.item_table.weight, model.encoders
    assert table.shape == (10, 16) and parts.likes is not None and parts.dislike_head is not None
    for user, likes in (([1, -2, 3, -4], [1, 3]), ([5, 6], [5, 6]), ([-7, 8, -9], [8]), ([-3, -1], [])):
        batch = history_batch(ragged([user]), np.array([0]), encoder.positions, CPU)
        items = torch.tensor(user)
        signed_LD = parts.main(table[items.abs(), 8:], ((1, len(user)),), items < 0)
        of_signed = signed_LD[-1] @ table[:, 8:].T
        liking = of_signed
        if likes:
            of_likes = parts.likes(table[likes, :8], ((1, len(likes)),))[-1] @ table[:, :8].T
            liking = 0.7 * of_signed + 0.3 * of_likes
        of_head = parts.dislike_head(signed_LD[-1]) @ table[:, 8:].T
        found = model.last_hidden(batch, gamma=0.2)[0] @ table.T
        torch.testing.assert_close(found, liking - 0.2 * of_head, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.last_negative_hidden(batch)[0] @ table.T, of_head, rtol=1e-5, atol=1e-6)
