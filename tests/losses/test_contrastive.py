"""L_c against the paper's formula in plain Python, in float64; gradients by gradcheck."""

import pytest
import torch
from helpers.slow_losses import random, slow_contrastive
from torch import Tensor

from pnfrec_dist.config.settings import ContrastiveSettings
from pnfrec_dist.losses.contrastive import contrastive


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_equals_the_formula(similarity: str, temperature: float) -> None:
    """Three users: with negatives, without, and with padding on both sides."""
    hidden, following, negatives = random(3, 4, 5), random(3, 4, 5, seed=1), random(3, 6, 5, seed=2)
    contrast_BN = torch.tensor([[3, 1, 4, 1, 5, 9], [0] * 6, [2, 7, 0, 0, 0, 0]])
    is_pad_BL = torch.tensor([[False] * 4, [False] * 3 + [True], [False, False, True, True]])
    settings = ContrastiveSettings(similarity, temperature)  # type: ignore[arg-type]
    total = contrastive(
        hidden.flatten(0, 1),
        following.flatten(0, 1),
        is_pad_BL.flatten(),
        negatives,
        contrast_BN == 0,
        ((3, 4),),
        settings,
    )
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
    parts = contrastive(
        hidden.flatten(0, 1),
        following.flatten(0, 1),
        is_pad_BL.flatten(),
        negatives,
        contrast_BN == 0,
        ((1, 4), (2, 4)),
        settings,
    )
    torch.testing.assert_close(parts, total, rtol=0, atol=1e-12)


def test_contrastive_of_a_user_without_negatives_is_zero_and_finite() -> None:
    hidden = random(3, 4).requires_grad_()
    no_pad, nothing = torch.zeros(3, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    zeros = torch.zeros(1, 1, 4, dtype=torch.float64)
    total = contrastive(hidden, random(3, 4, seed=1), no_pad, zeros, nothing, ((1, 3),), ContrastiveSettings())
    total.backward()
    assert total.item() == 0
    assert hidden.grad is not None and (hidden.grad == 0).all()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_contrastive_gradient(similarity: str) -> None:
    inputs = tuple(random(*shape, seed=n).requires_grad_() for n, shape in enumerate(((8, 3), (8, 3), (2, 5, 3))))
    is_pad_P = torch.tensor([False] * 7 + [True])
    is_pad_BN = torch.tensor([[False, False, False, True, True], [False, True, True, True, True]])
    settings = ContrastiveSettings(similarity)  # type: ignore[arg-type]

    def loss(hidden_PD: Tensor, next_PD: Tensor, negatives_BND: Tensor) -> Tensor:
        return contrastive(hidden_PD, next_PD, is_pad_P, negatives_BND, is_pad_BN, ((2, 4),), settings)

    assert torch.autograd.gradcheck(loss, inputs)
