"""Batch, model and losses together against the paper's formulas, one user at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.slow_losses import random, slow_contrastive, slow_cross_entropy

from pnfrec_dist.config.settings import ContrastiveSettings, EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged, signed
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import encoded, needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec


def test_the_whole_objective_equals_the_formulas_per_user() -> None:
    """Batch, model and losses together against one user at a time, item by item."""
    positives, negatives = [[1, 2, 3, 4, 5], [6, 7], [2, 9, 4]], [[8, 3, 9], [], [1]]

    def ragged(rows: list[list[int]]) -> Ragged:
        return Ragged(np.cumsum([0] + [len(r) for r in rows]), np.array([i for r in rows for i in r]))

    encoder = EncoderSettings(hidden_size=4, num_blocks=1, max_length=3, dropout=0.0)
    loss = LossSettings(alpha=0.5, beta=0.5)
    model = PNFRec(9, encoder, torch.Generator().manual_seed(1), with_negative=loss.alpha > 0).double()
    with torch.no_grad():
        model.item_table.weight[1:] += random(9, 4)
    data = TrainData(ragged(positives), ragged(negatives))
    batch = train_batch(data, np.arange(3), encoder, needed_parts(loss), torch.device("cpu"))
    vectors_UD = model.item_table.lookup(batch.items_U)
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    objective = Objective(Settings(encoder=encoder, loss=loss))
    tensors = encoded(model.encoders, vectors_UD, batch)
    weighted, totals = objective.loss(tensors, model.item_table, weights)

    table = model.item_table.weight.tolist()
    expected = [0.0, 0.0, 0.0]
    for liked, disliked in zip(positives, negatives, strict=True):
        sides = []
        for items, side in ((liked[-4:], model.encoders.main), (disliked[-4:], model.encoders.negative)):
            assert side is not None
            vectors = torch.tensor([[table[i] for i in items[:-1]]], dtype=torch.float64).reshape(1, -1, 4)
            length = len(items) - 1
            sides.append((side(vectors[0], ((1, length),)).tolist() if length > 0 else [], items[1:]))
        for term, (states, targets) in enumerate(sides):
            expected[term] += slow_cross_entropy(states, table[1:], targets)
        states, targets = sides[0]
        contrast = [table[j] for j in disliked[-4:]]
        expected[2] += slow_contrastive(states, [table[t] for t in targets], contrast, "cosine", 1.0)
    assert (totals - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12
    assert abs(weighted.item() - (weights * totals).sum().item()) <= 1e-12
    assert objective.counts(batch).tolist() == [3 + 1 + 2, 2, 6]
    assert list(objective.terms) == ["ce_main", "ce_negative", "contrastive"]


FEW = [
    [(1, True), (2, False), (3, False), (4, True), (5, True), (8, False), (6, True), (7, False), (9, True)],
    [(6, True), (7, True)],
    [(2, False), (9, False), (4, False)],
]
"""A user with more items than the window of 6 + 1, one with likes only, one with dislikes only."""


def many_users() -> list[list[tuple[int, bool]]]:
    """Users of all lengths up to more than a window of 40 + 1, so that groups contain padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 46, 24)
    return [[(int(rng.integers(1, 10)), bool(rng.random() < 0.6)) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("users", "max_length"), [(FEW, 3), (many_users(), 20)], ids=["few", "many"])
def test_models_of_all_interactions_equal_the_formulas_per_user(
    users: list[list[tuple[int, bool]]], max_length: int, beta: float
) -> None:
    """sasrec and sasrec_c: cross-entropy at every position, and InfoNCE from each like to the next one among the
    window's dislikes."""

    def ragged(place: int) -> Ragged:
        offsets = np.cumsum([0] + [len(user) for user in users])
        return Ragged(offsets, np.array([entry[place] for user in users for entry in user]))

    encoder = EncoderSettings(hidden_size=4, num_blocks=1, history="all", max_length=max_length, dropout=0.0)
    loss, contrast = LossSettings(beta=beta), ContrastiveSettings("cosine", 0.1)
    model = PNFRec(9, encoder, torch.Generator().manual_seed(1), with_negative=loss.alpha > 0).double()
    with torch.no_grad():
        model.item_table.weight[1:] += random(9, 4)
    data = TrainData(signed(ragged(0), ragged(1)), None)
    batch = train_batch(data, np.arange(len(users)), encoder, needed_parts(loss), torch.device("cpu"))
    assert len(users) == 3 or sum(count * length for count, length in batch.main.groups) > batch.main.places_T.numel()
    vectors_UD = model.item_table.lookup(batch.items_U)
    weights = torch.tensor([0.7, 0.1] if beta else [0.7], dtype=torch.float64)
    objective = Objective(Settings(encoder=encoder, loss=loss, contrastive=contrast))
    tensors = encoded(model.encoders, vectors_UD, batch)
    weighted, totals = objective.loss(tensors, model.item_table, weights)

    table = model.item_table.weight.tolist()
    expected, compared = [0.0] * len(totals), 0
    for user in users:
        window = user[-2 * max_length - 1 :]
        items = [item for item, _ in window]
        vectors = torch.tensor([table[i] for i in items[:-1]], dtype=torch.float64)
        states = model.encoders.main(vectors, ((1, len(items) - 1),)).tolist()
        expected[0] += slow_cross_entropy(states, table[1:], items[1:])
        likes = [place for place, (_, liked) in enumerate(window) if liked]
        dislikes = [table[item] for item, liked in window if not liked]
        for place, following in pairwise(likes):
            compared += 1
            if beta:
                expected[1] += slow_contrastive([states[place]], [table[items[following]]], dislikes, "cosine", 0.1)
    if users is FEW:
        assert compared == 3 + 1
    assert (totals - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12 * max(expected)
    assert abs(weighted.item() - (weights * totals).sum().item()) <= 1e-12 * max(expected)
    tokens = sum(min(len(user), 2 * max_length + 1) - 1 for user in users)
    assert objective.counts(batch).tolist() == ([tokens, compared] if beta else [tokens])
