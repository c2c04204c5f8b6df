"""SCE against its description in plain Python, and against the exact softmax if both must be equal."""

import math

import pytest
import torch
from helpers.sampled import ITEMS, TARGETS_T, WEIGHTS_T, WIDTH, exact, gradients, item_table, settings
from helpers.slow_losses import random

from pnfrec_dist.losses.catalog_loss import Targets
from pnfrec_dist.losses.sce import SCE


def test_sce_whose_buckets_pick_everything_is_the_exact_softmax() -> None:
    hidden_TD, table = random(6, WIDTH).requires_grad_(), item_table()
    all_of_them = settings(sce_buckets=2, sce_targets=50, sce_items=50)
    total, loss_T = SCE(Targets(hidden_TD, TARGETS_T, WEIGHTS_T), table, all_of_them)
    found = gradients(total, hidden_TD, table)
    expected_total, expected_T = exact(hidden_TD, table)
    torch.testing.assert_close(loss_T, expected_T, rtol=0, atol=1e-12)
    for a, b in zip(found, gradients(expected_total, hidden_TD, table), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_sce_equals_its_description() -> None:
    """Buckets, picks and the largest loss of each target, one by one."""
    hidden_TD, table = random(6, WIDTH), item_table()
    few = settings(sce_buckets=3, sce_targets=2, sce_items=4)
    torch.manual_seed(5)
    total, loss_T = SCE(Targets(hidden_TD, TARGETS_T, WEIGHTS_T), table, few)
    torch.manual_seed(5)
    buckets = torch.randn(3, 6, dtype=torch.float64) @ hidden_TD
    losses: dict[int, float] = {}
    for bucket in buckets:
        picked = sorted(range(6), key=lambda t: -float(bucket @ hidden_TD[t]))[:2]
        items = sorted(range(1, ITEMS + 1), key=lambda i: -float(bucket @ table.weight[i]))[:4]
        for t in picked:
            target = int(TARGETS_T[t])
            scores = {i: float(hidden_TD[t] @ table.weight[i]) for i in {*items, target}}
            loss = math.log(sum(math.exp(v) for v in scores.values())) - scores[target]
            losses[t] = max(loss, losses.get(t, 0.0))
    assert len(losses) < 6, "a case where some target is not picked"
    weights = WEIGHTS_T.tolist()
    raised = sum(weights) / sum(weights[t] for t in losses)
    assert loss_T.tolist() == pytest.approx([raised * losses.get(t, 0.0) for t in range(6)], abs=1e-12)
    assert total.item() == pytest.approx(raised * sum(weights[t] * v for t, v in losses.items()), abs=1e-12)
