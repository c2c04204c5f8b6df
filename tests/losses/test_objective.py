"""Batch, model and losses together against the paper's formulas, one user at a time."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.slow_losses import random, slow_contrastive, slow_cross_entropy
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.config.settings import ContrastiveSettings, EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged, signed
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import encoded, needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize(("users", "max_length"), [(FEW, 3), (many_users(), 20)], ids=["few", "many"])
def test_a_signed_model_and_its_gradients_equal_the_formulas_per_user(
    users: list[list[tuple[int, bool]]], max_length: int, alpha: float, beta: float
) -> None:
    """CE where the very next item is liked; by the head, CE where it is disliked; InfoNCE as for sasrec_c."""
    encoder = EncoderSettings(hidden_size=4, num_blocks=1, history="signed", max_length=max_length, dropout=0.0)
    loss = LossSettings(alpha, beta)
    settings = Settings(encoder=encoder, loss=loss, contrastive=ContrastiveSettings("cosine", 0.1))
    model = PNFRec(9, encoder, torch.Generator().manual_seed(1), with_negative=alpha > 0).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.5 * random(*parameter.shape, seed=number)
        model.item_table.weight[0] = 0.0
    plain = copy.deepcopy(model)
    histories = Ragged.of([[item if liked else -item for item, liked in user] for user in users])
    batch = train_batch(TrainData(histories, None), np.arange(len(users)), encoder, needed_parts(loss), CPU)
    objective, vectors_UD = Objective(settings), model.item_table.lookup(batch.items_U)
    weights = torch.tensor([0.7, 0.2, 0.1] if alpha else [0.7], dtype=torch.float64)
    weighted, totals = objective.loss(encoded(model.encoders, vectors_UD, batch), model.item_table, weights)
    weighted.backward()
    model.item_table.collect_gradients()

    signs = plain.encoders.main.signs
    assert signs is not None
    plain.encoders.main.signs = None  # here, signs are a part of the items' vectors
    terms: list[list[Tensor]] = [[], [], []]
    for user in users:
        for term, losses in zip(terms, plain_terms(plain, signs.weight, user[-2 * max_length - 1 :]), strict=True):
            term += losses
    expected = torch.stack([torch.stack(term).sum() for term in terms[: len(weights)]])
    (weights * expected).sum().backward()
    assert objective.counts(batch).tolist() == [len(term) for term in terms[: len(weights)]]
    torch.testing.assert_close(totals, expected.detach(), rtol=1e-12, atol=0)
    plain.encoders.main.signs = signs
    for (name, found), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert found.grad is not None and wanted.grad is not None, name
        torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize(("users", "max_length"), [(FEW, 3), (many_users(), 20)], ids=["few", "many"])
def test_the_likes_encoder_predicts_the_next_like_from_likes_alone(
    users: list[list[tuple[int, bool]]], max_length: int
) -> None:
    """It reads the likes of the newest 2 l + 1 interactions and the first half of the item vectors."""
    encoder = EncoderSettings(hidden_size=4, num_blocks=1, history="both", max_length=max_length, dropout=0.0)
    loss = LossSettings(0.5, 0.3, ("ce_likes=2",))
    model = PNFRec(9, encoder, torch.Generator().manual_seed(1), with_negative=True).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.5 * random(*parameter.shape, seed=number)
        model.item_table.weight[0] = 0.0
    histories = Ragged.of([[item if liked else -item for item, liked in user] for user in users])
    batch = train_batch(TrainData(histories, None), np.arange(len(users)), encoder, needed_parts(loss), CPU)
    objective, vectors_UD = Objective(Settings(encoder=encoder, loss=loss)), model.item_table.lookup(batch.items_U)
    _, totals = objective.loss(encoded(model.encoders, vectors_UD, batch), model.item_table, objective.weights_J)
    found = dict(zip(objective.terms, totals.tolist(), strict=True))
    counts = dict(zip(objective.terms, objective.counts(batch).tolist(), strict=True))

    table_VD, expected, compared = model.item_table.weight[:, :4].detach(), 0.0, 0
    likes_encoder = model.encoders.likes
    assert likes_encoder is not None
    for user in users:
        likes = [item for item, liked in user[-2 * max_length - 1 :] if liked]
        if len(likes) > 1:
            states_LD = likes_encoder(table_VD[likes[:-1]], ((1, len(likes) - 1),))
            expected += slow_cross_entropy(states_LD.tolist(), table_VD[1:].tolist(), likes[1:])
            compared += len(likes) - 1
    assert counts["ce_likes"] == compared > 0
    assert found["ce_likes"] == pytest.approx(expected, rel=1e-12)


def plain_terms(model: PNFRec, signs_2D: Tensor, window: list[tuple[int, bool]]) -> tuple[list[Tensor], ...]:
    """The losses of one user: of each next like, of each next dislike, of each like with a later like."""
    table_VD, likes, dislikes, contrasts = model.item_table.weight, [], [], []
    vectors = [table_VD[item] + signs_2D[0 if liked else 1] / 2 for item, liked in window[:-1]]  # 2 is sqrt(d)
    hidden_LD = model.encoders.main(torch.stack(vectors), ((1, len(vectors)),))
    disliked = [item for item, liked in window if not liked]
    for place, hidden_D in enumerate(hidden_LD):
        (item, liked), head = window[place + 1], model.encoders.dislike_head
        if liked:
            likes.append(-F.log_softmax(table_VD[1:] @ hidden_D, dim=0)[item - 1])
        elif head is not None:
            query_D = head.weight @ hidden_D + head.bias
            dislikes.append(-F.log_softmax(table_VD[1:] @ query_D, dim=0)[item - 1])
        later = [item for item, liked in window[place + 1 :] if liked]
        if window[place][1] and later:
            scores = F.cosine_similarity(table_VD[[later[0], *disliked]], hidden_D[None], dim=1) / 0.1
            contrasts.append(-F.log_softmax(scores, dim=0)[0])
    return likes, dislikes, contrasts
