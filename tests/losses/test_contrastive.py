"""L_c against the paper's formula in plain Python, in float64; gradients by gradcheck."""

import pytest
import torch
from helpers.slow_losses import random, slow_contrastive
from torch import Tensor

from pnfrec_dist.config.settings import ContrastiveSettings
from pnfrec_dist.losses.contrastive import contrastive

NEXT_BL = torch.tensor([[1, 2, 3, 1], [4, 5, 6, 0], [7, 8, 0, 0]])
"""Places of next positives: some of users without padding, with padding, and repeated."""
NEGATIVES_BN = torch.tensor([[3, 1, 4, 1, 5, 9], [0] * 6, [2, 7, 0, 0, 0, 0]])
"""Of users with negatives, without, and with padding."""


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_contrastive_equals_the_formula(similarity: str, temperature: float) -> None:
    hidden_BLD, vectors_UD = random(3, 4, 5), random(10, 5, seed=1)
    settings = ContrastiveSettings(similarity, temperature)  # type: ignore[arg-type]
    whole, parts = (
        contrastive(hidden_BLD.flatten(0, 1), vectors_UD, NEXT_BL.flatten(), NEGATIVES_BN, groups, settings)
        for groups in (((3, 4),), ((1, 4), (2, 4)))
    )
    expected = sum(
        slow_contrastive(
            hidden_BLD[user][NEXT_BL[user] != 0].tolist(),
            vectors_UD[NEXT_BL[user][NEXT_BL[user] != 0]].tolist(),
            vectors_UD[NEGATIVES_BN[user][NEGATIVES_BN[user] != 0]].tolist(),
            similarity,
            temperature,
        )
        for user in range(3)
    )
    assert abs(whole.item() - expected) <= 1e-12
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_hidden_states_in_bfloat16_give_a_loss_in_float32(similarity: str) -> None:
    hidden_PD, vectors_UD = random(12, 64).bfloat16().float(), random(10, 64, seed=1).float() / 8
    settings = ContrastiveSettings(similarity)  # type: ignore[arg-type]
    hidden_PD.requires_grad_()
    wanted = contrastive(hidden_PD, vectors_UD, NEXT_BL.flatten(), NEGATIVES_BN, ((3, 4),), settings)
    with torch.autocast("cpu", torch.bfloat16):
        narrow_PD = hidden_PD.detach().bfloat16().requires_grad_()
        found = contrastive(narrow_PD, vectors_UD, NEXT_BL.flatten(), NEGATIVES_BN, ((3, 4),), settings)
    for loss in (wanted, found):
        loss.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=4e-3, atol=0)
    assert narrow_PD.grad is not None and hidden_PD.grad is not None and narrow_PD.grad.dtype == torch.bfloat16
    largest = hidden_PD.grad.abs().max().item()
    torch.testing.assert_close(narrow_PD.grad.float(), hidden_PD.grad, rtol=0, atol=0.02 * largest)


def test_contrastive_of_a_user_without_negatives_is_zero_and_finite() -> None:
    hidden_PD, next_P = random(3, 4).requires_grad_(), torch.tensor([1, 2, 3])
    nothing_BN = torch.zeros(1, 1, dtype=torch.int64)
    total = contrastive(hidden_PD, random(4, 4, seed=1), next_P, nothing_BN, ((1, 3),), ContrastiveSettings())
    total.backward()
    assert total.item() == 0
    assert hidden_PD.grad is not None and (hidden_PD.grad == 0).all()


def test_a_hidden_state_or_a_vector_of_zeros_has_a_finite_gradient() -> None:
    hidden_PD, vectors_UD = torch.zeros(4, 3, requires_grad=True), torch.zeros(10, 3, requires_grad=True)
    total = contrastive(hidden_PD, vectors_UD, NEXT_BL[0], NEGATIVES_BN[:1], ((1, 4),), ContrastiveSettings())
    total.backward()
    for tensor in (hidden_PD, vectors_UD):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_contrastive_gradient(similarity: str) -> None:
    inputs = (random(12, 3).requires_grad_(), random(10, 3, seed=1).requires_grad_())
    settings = ContrastiveSettings(similarity)  # type: ignore[arg-type]

    def loss(hidden_PD: Tensor, vectors_UD: Tensor) -> Tensor:
        return contrastive(hidden_PD, vectors_UD, NEXT_BL.flatten(), NEGATIVES_BN, ((1, 4), (2, 4)), settings)

    assert torch.autograd.gradcheck(loss, inputs)
