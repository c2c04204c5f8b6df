"""Each loss against the paper's formula in plain Python, in float64; gradients by gradcheck."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pnfrec_dist.config import ContrastiveSettings, EncoderSettings, LossSettings
from pnfrec_dist.data.batch import train_batch
from pnfrec_dist.data.prepared import Ragged, TrainData
from pnfrec_dist.losses.contrastive import contrastive
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.objective import loss_totals
from pnfrec_dist.model.dual_encoder import DualEncoder


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_cross_entropy(hidden: list[list[float]], classes: list[list[float]], targets: list[int]) -> float:
    total = 0.0
    for h, target in zip(hidden, targets, strict=True):
        logits = [sum(a * b for a, b in zip(h, c, strict=True)) for c in classes]
        total += -math.log(math.exp(logits[target - 1]) / sum(math.exp(v) for v in logits))
    return total


def slow_contrastive(
    hidden: list[list[float]],
    following: list[list[float]],
    negatives: list[list[float]],
    similarity: str,
    temperature: float,
) -> float:
    """One user: sum over positions of -log(exp f(h, next) / (exp f(h, next) + sum_j exp f(h, j)))."""

    def f(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        if similarity == "cosine":
            dot /= math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return dot / temperature

    total = 0.0
    for h, nxt in zip(hidden, following, strict=True):
        positive = math.exp(f(h, nxt))
        total += -math.log(positive / (positive + sum(math.exp(f(h, j)) for j in negatives)))
    return total


def test_cross_entropy_equals_the_formula() -> None:
    hidden_TD, classes_ND, targets_T = random(5, 3), random(7, 3, seed=1), torch.tensor([1, 7, 3, 3, 6])
    total, count = cross_entropy(hidden_TD, classes_ND, targets_T)
    expected = slow_cross_entropy(hidden_TD.tolist(), classes_ND.tolist(), targets_T.tolist())
    assert abs(total.item() - expected) <= 1e-12
    assert count.item() == 5


def test_cross_entropy_of_equal_logits_is_log_n() -> None:
    total, _ = cross_entropy(torch.zeros(2, 4, dtype=torch.float64), random(10, 4), torch.tensor([3, 9]))
    assert abs(total.item() - 2 * math.log(10)) <= 1e-12


def test_cross_entropy_is_finite_at_huge_logits_and_zero_without_targets() -> None:
    hidden_TD = torch.tensor([[1e4], [-1e4]], dtype=torch.float64, requires_grad=True)
    total, _ = cross_entropy(hidden_TD, torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([1, 1]))
    total.backward()
    assert total.item() == 2e4 and hidden_TD.grad is not None and hidden_TD.grad.isfinite().all()
    total, count = cross_entropy(random(0, 3), random(4, 3), torch.empty(0, dtype=torch.int64))
    assert total.item() == 0 and count.item() == 0


def test_cross_entropy_gradient() -> None:
    inputs = (random(4, 3).requires_grad_(), random(6, 3, seed=1).requires_grad_())
    targets_T = torch.tensor([1, 6, 2, 2])
    assert torch.autograd.gradcheck(lambda h, c: cross_entropy(h, c, targets_T)[0], inputs)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_equals_the_formula(similarity: str, temperature: float) -> None:
    """Three users: with negatives, without, and with padding on both sides."""
    hidden, following, negatives = random(3, 4, 5), random(3, 4, 5, seed=1), random(3, 6, 5, seed=2)
    contrast_BN = torch.tensor([[3, 1, 4, 1, 5, 9], [0] * 6, [2, 7, 0, 0, 0, 0]])
    is_pad_BL = torch.tensor([[False] * 4, [False] * 3 + [True], [False, False, True, True]])
    settings = ContrastiveSettings(similarity, temperature)  # type: ignore[arg-type]
    total, count = contrastive(hidden, following, is_pad_BL, negatives, contrast_BN, settings)
    expected = sum(
        slow_contrastive(
            hidden[u][~is_pad_BL[u]].tolist(),
            following[u][~is_pad_BL[u]].tolist(),
            negatives[u][contrast_BN[u] != 0].tolist(),
            similarity,
            temperature,
        )
        for u in range(3)
    )
    assert abs(total.item() - expected) <= 1e-12
    assert count.item() == 4 + 3 + 2


def test_contrastive_of_a_user_without_negatives_is_zero_and_finite() -> None:
    hidden = random(1, 3, 4).requires_grad_()
    no_pad = torch.zeros(1, 3, dtype=torch.bool)
    nothing = torch.zeros(1, 1, dtype=torch.int64)
    zeros = torch.zeros(1, 1, 4, dtype=torch.float64)
    total, count = contrastive(hidden, random(1, 3, 4, seed=1), no_pad, zeros, nothing, ContrastiveSettings())
    total.backward()
    assert total.item() == 0 and count.item() == 3
    assert hidden.grad is not None and (hidden.grad == 0).all()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_contrastive_gradient(similarity: str) -> None:
    inputs = tuple(random(2, n, 3, seed=n).requires_grad_() for n in (4, 4, 5))
    is_pad_BL = torch.tensor([[False] * 4, [False, False, False, True]])
    contrast_BN = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    settings = ContrastiveSettings(similarity)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda h, n, j: contrastive(h, n, is_pad_BL, j, contrast_BN, settings)[0], inputs)


def test_the_whole_objective_equals_the_formulas_per_user() -> None:
    """Batch, model and losses together against one user at a time, item by item."""
    positives, negatives = [[1, 2, 3, 4, 5], [6, 7], [2, 9, 4]], [[8, 3, 9], [], [1]]

    def ragged(rows: list[list[int]]) -> Ragged:
        return Ragged(np.cumsum([0] + [len(r) for r in rows]), np.array([i for r in rows for i in r]))

    encoder = EncoderSettings(hidden_size=4, num_blocks=1, max_length=3, dropout=0.0)
    loss = LossSettings(alpha=0.5, beta=0.5)
    model = DualEncoder(9, encoder, loss, torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        model.item_table.weight[1:] += random(9, 4)
    batch = train_batch(
        TrainData(ragged(positives), ragged(negatives)), np.arange(3), encoder, loss, torch.device("cpu")
    )
    assert batch.negative is not None
    positive_BLD, negative_BLD = model(batch.positive.inputs_BL, batch.negative.inputs_BL)
    totals, counts = loss_totals(positive_BLD, negative_BLD, batch, model.item_table, ContrastiveSettings())

    table = model.item_table.weight.tolist()
    expected = [0.0, 0.0, 0.0]
    for liked, disliked in zip(positives, negatives, strict=True):
        sides = []
        for items, side in ((liked[-4:], model.positive_encoder), (disliked[-4:], model.negative_encoder)):
            assert side is not None
            vectors = torch.tensor([[table[i] for i in items[:-1]]], dtype=torch.float64).reshape(1, -1, 4)
            sides.append((side(vectors)[0].tolist() if len(items) > 1 else [], items[1:]))
        for term, (states, targets) in enumerate(sides):
            expected[term] += slow_cross_entropy(states, table[1:], targets)
        states, targets = sides[0]
        contrast = [table[j] for j in disliked[-4:]]
        expected[2] += slow_contrastive(states, [table[t] for t in targets], contrast, "cosine", 1.0)
    assert (totals - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12
    assert counts.tolist() == [3 + 1 + 2, 2, 6]
