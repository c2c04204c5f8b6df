"""The sweeps over tiles: what they give by blocks, and the log-sum-exp that a few classes tell."""

import pytest
import torch
from helpers.slow_losses import random
from torch.nn import functional as F

from pnfrec_dist.losses.softmax_sweeps import (
    CLASS_MULTIPLE,
    FIRST_CLASSES,
    add_class_gradient,
    log_sum_exp,
    one_sweep,
    softmax_mean,
)
from pnfrec_dist.losses.tiling import ROW_MULTIPLE, Tiling

TILINGS = [Tiling(7, 50, "two"), Tiling(100, 64, "two"), Tiling(3, 200, "one")]


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_blocks_combine_to_the_whole_softmax(tiling: Tiling, scale: float) -> None:
    """Also with logits so far apart that most probabilities, and those of whole blocks, are 0."""
    hidden_TD, classes_ND, weights_T = scale * random(20, 6, seed=1), random(200, 6, seed=2), random(20, seed=3).abs()
    logits_TN = hidden_TD @ classes_ND.T
    lse_T, mean_TD, lse_TB = softmax_mean(hidden_TD, classes_ND, tiling, torch.float64)
    torch.testing.assert_close(lse_T, logits_TN.logsumexp(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mean_TD, logits_TN.softmax(1) @ classes_ND, rtol=1e-12, atol=1e-12)
    for block, part_Tn in enumerate(logits_TN.split(tiling.items, dim=1)):
        torch.testing.assert_close(lse_TB[:, block], part_Tn.logsumexp(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(log_sum_exp(hidden_TD, classes_ND, tiling, torch.float64), lse_T)
    grad_ND = torch.ones_like(classes_ND)
    weights_TB = weights_T[:, None] * (lse_TB - lse_T[:, None]).exp()
    add_class_gradient(hidden_TD, classes_ND, weights_TB, tiling, torch.float64, grad_ND)
    expected_ND = (weights_T[:, None] * logits_TN.softmax(1)).T @ hidden_TD
    torch.testing.assert_close(grad_ND, 1 + expected_ND, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, ROW_MULTIPLE, 2 * ROW_MULTIPLE + 5, 3 * ROW_MULTIPLE - 1])
@pytest.mark.parametrize("classes", [CLASS_MULTIPLE, 2 * CLASS_MULTIPLE + 1])
def test_padded_rows_and_classes_add_nothing(rows: int, classes: int) -> None:
    hidden_TD, classes_ND, weights_T = random(rows, 6, seed=1), random(classes, 6, seed=2), random(rows, seed=3).abs()
    targets_T = torch.arange(rows) % classes
    leaves = [t.clone().requires_grad_() for t in (hidden_TD, classes_ND)]
    loss_T = F.cross_entropy(leaves[0] @ leaves[1].T, targets_T, reduction="none")
    (weights_T * loss_T).sum().backward()
    grad_ND, tiling = torch.ones_like(classes_ND), Tiling(ROW_MULTIPLE, classes, "one")
    lse_T, logit_T, grad_TD = one_sweep(hidden_TD, classes_ND, targets_T, weights_T, tiling, torch.float64, grad_ND)
    for found, expected in ((lse_T - logit_T, loss_T), (grad_TD, leaves[0].grad), (grad_ND - 1, leaves[1].grad)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, -128.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_log_sum_exp_does_not_need_likely_first_classes(dtype: torch.dtype, shift: float) -> None:
    """Their probabilities are small, tiny, or 0: then, the row's logits are computed again."""
    stored = torch.float32 if dtype == torch.bfloat16 else dtype
    classes_ND = torch.zeros(FIRST_CLASSES + 9, 2, dtype=stored)
    classes_ND[FIRST_CLASSES:, 0] = 1
    classes_ND[:, 1] = shift  # of all logits: those that pad the tile stay -inf
    largest = 2**12 if shift else 2**20  # the logits are numbers of bfloat16
    hidden_TD = torch.tensor([[at, 1.0] for at in (0.5, 8, 60, 80, 96, 1024, largest)], dtype=stored)
    expected_T = (hidden_TD.double() @ classes_ND.double().T).logsumexp(1)
    grad_ND = torch.zeros_like(classes_ND)
    weights_T = torch.ones(7, dtype=stored)
    targets_T, tiling = torch.arange(7), Tiling(99, 99, "one")
    lse_T, _, grad_TD = one_sweep(hidden_TD, classes_ND, targets_T, weights_T, tiling, dtype, grad_ND)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(lse_T.double(), expected_T, rtol=1e-7, atol=tolerance)
    assert grad_TD.isfinite().all() and grad_ND.isfinite().all()


def test_a_narrow_log_sum_exp_is_right_on_average() -> None:
    """Logits and probabilities are rounded to 8 bits, but the errors of many classes cancel."""
    hidden_TD, classes_ND = random(400, 16, seed=1).float().bfloat16().float(), random(5_000, 16, seed=2).float()
    classes_ND = classes_ND.bfloat16().float()
    expected_T = (hidden_TD.double() @ classes_ND.double().T).bfloat16().double().logsumexp(1)
    found_T = log_sum_exp(hidden_TD, classes_ND, Tiling(64, 1_000, "two"), torch.bfloat16)
    assert (found_T - expected_T).abs().max() < 0.008
    assert abs((found_T - expected_T).mean()) < 5e-4


def test_nan_stays_nan() -> None:
    hidden_TD = torch.tensor([[1.0], [torch.nan], [torch.inf]])
    classes_ND = torch.randn(100, 1)
    lse_T, mean_TD, _ = softmax_mean(hidden_TD, classes_ND, Tiling(9, 40, "two"), torch.float32)
    assert lse_T.isfinite().tolist() == [True, False, False]
    assert mean_TD.isfinite()[:, 0].tolist() == [True, False, False]
