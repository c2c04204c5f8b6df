"""Every path of the exact cross-entropy against the plain formula, elementwise, in every dtype."""

import math

import pytest
import torch
from helpers.slow_losses import random, slow_cross_entropy
from torch import Tensor, nn

from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.tiling import Tiling
from pnfrec_dist.model.item_table import ItemTable


def as_table(table_VD: Tensor) -> ItemTable:
    """An item table on one rank with these rows."""
    table = ItemTable(len(table_VD) - 1, table_VD.shape[1])
    table.weight = nn.Parameter(table_VD.clone())
    return table


TILINGS = {
    "materialised": Tiling(10**6, 10**6, "one"),
    "chunked": Tiling(5, 10**6, "one"),
    "chunked one by one": Tiling(1, 10**6, "one"),
    "tiled": Tiling(5, 4, "two"),
    "tiled, all rows": Tiling(10**6, 3, "two"),
    "tiled one by one": Tiling(1, 1, "two"),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest error of a gradient's element, relative to the largest element."""


def plain(hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor, weights_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, gradient of hidden, gradient of the table) by the formula with all logits, in float64."""
    hidden_TD, table_VD = (t.detach().double().requires_grad_() for t in (hidden_TD, table_VD))
    logits_TN = hidden_TD @ table_VD[1:].T
    loss_T = logits_TN.logsumexp(1) - logits_TN.gather(1, targets_T[:, None] - 1)[:, 0]
    (weights_T.double() * loss_T).sum().backward()
    assert hidden_TD.grad is not None and table_VD.grad is not None
    return loss_T.detach(), hidden_TD.grad, table_VD.grad


def case(targets: int, items: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a table whose padding row must not matter, repeated targets, weights of which a third are 0."""
    targets_T = torch.randint(1, items + 1, (targets,), generator=torch.Generator().manual_seed(seed))
    weights_T = random(targets, seed=seed + 1).abs() * (torch.arange(targets) % 3 != 1)
    return random(targets, width, seed=seed + 2), 2 * random(items + 1, width, seed=seed + 3), targets_T, weights_T


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("targets", "items"), [(13, 11), (10, 8), (1, 7), (7, 1), (1, 1), (0, 5), (40, 3)])
def test_loss_and_gradients_equal_the_formula(name: str, dtype: torch.dtype, targets: int, items: int) -> None:
    """Only matmuls are in bfloat16; sums and results are in float32."""
    stored = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden_TD, table_VD, targets_T, weights_T = case(targets, items)
    hidden_TD, table = hidden_TD.to(stored).requires_grad_(), as_table(table_VD.to(stored))
    total, loss_T = cross_entropy(hidden_TD, table, targets_T, weights_T, TILINGS[name], dtype)
    (3 * total).backward()
    expected_T, *expected = plain(hidden_TD, table.weight, targets_T, 3 * weights_T)
    assert total.dtype == loss_T.dtype == stored
    torch.testing.assert_close(loss_T.double(), expected_T, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    torch.testing.assert_close(total, (weights_T.to(stored) * loss_T).sum().detach())
    for found, wanted in zip((hidden_TD.grad, table.weight.grad), expected, strict=True):
        assert found is not None and found.dtype == stored
        largest = max(wanted.abs().max().item(), 1.0) if wanted.numel() else 1.0
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2 * TOLERANCE[dtype] * largest)
    assert (table.weight.grad[0] == 0).all(), "padding is no class"  # type: ignore[index]


def test_equals_the_definition_in_plain_python() -> None:
    hidden_TD, table_VD, targets_T, weights_T = case(5, 7)
    for tiling in TILINGS.values():
        _, loss_T = cross_entropy(hidden_TD, as_table(table_VD), targets_T, weights_T, tiling)
        expected = slow_cross_entropy(hidden_TD.tolist(), table_VD[1:].tolist(), targets_T.tolist())
        assert abs(loss_T.sum().item() - expected) <= 1e-12


@pytest.mark.parametrize("name", TILINGS)
def test_equal_logits_give_log_n_without_a_gradient_wanted(name: str) -> None:
    hidden_TD, table = torch.zeros(2, 6, dtype=torch.float64), as_table(random(11, 6))
    with torch.no_grad():
        total, loss_T = cross_entropy(hidden_TD, table, torch.tensor([3, 9]), torch.ones(2), TILINGS[name])
    assert not total.requires_grad
    assert (loss_T - math.log(10)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_finite_at_huge_logits(name: str, dtype: torch.dtype) -> None:
    """Logits of +-1e4: the loss is 0 or 2e4, and gradients are whole vectors."""
    stored = torch.float32 if dtype == torch.bfloat16 else dtype
    hidden_TD = torch.tensor([[1e4], [-1e4], [0.0]], dtype=stored, requires_grad=True)
    table = as_table(torch.tensor([[9.0], [1.0], [-1.0]], dtype=stored))
    total, loss_T = cross_entropy(
        hidden_TD, table, torch.tensor([1, 1, 2]), torch.ones(3, dtype=stored), TILINGS[name], dtype
    )
    total.backward()
    torch.testing.assert_close(loss_T.double(), torch.tensor([0, 2e4, math.log(2)]).double(), rtol=2e-3, atol=1e-6)
    assert hidden_TD.grad is not None and table.weight.grad is not None
    torch.testing.assert_close(hidden_TD.grad, torch.tensor([[0.0], [-2.0], [1.0]], dtype=stored), rtol=2e-3, atol=1e-6)
    assert table.weight.grad.isfinite().all()


def test_the_table_gradient_is_handed_over_without_a_copy() -> None:
    """With a million items, a copy would be the largest tensor in memory."""
    hidden_TD, table_VD, targets_T, weights_T = case(5, 9)
    table = as_table(table_VD)
    total, _ = cross_entropy(hidden_TD, table, targets_T, weights_T, TILINGS["tiled"])
    made = total.grad_fn.gradients[1].data_ptr()  # type: ignore[union-attr]
    total.backward()
    assert table.weight.grad is not None and table.weight.grad.data_ptr() == made
    with pytest.raises(AssertionError, match="call backward once"):
        total.backward()


def test_a_narrow_hidden_state_gets_a_gradient_of_its_dtype() -> None:
    """Autocast makes such hidden states."""
    hidden_TD, table_VD, targets_T, weights_T = case(5, 9)
    narrow_TD = hidden_TD.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, loss_T = cross_entropy(
            narrow_TD, as_table(table_VD.float()), targets_T, weights_T, TILINGS["tiled"], torch.bfloat16
        )
    total.backward()
    assert total.dtype == loss_T.dtype == torch.float32
    assert narrow_TD.grad is not None and narrow_TD.grad.dtype == torch.bfloat16
