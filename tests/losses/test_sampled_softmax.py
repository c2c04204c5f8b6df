"""Softmax over sampled items: against its formula in plain Python, and against the exact one if both must be equal."""

import math

import pytest
import torch
from helpers.sampled import ITEMS, TARGETS_T, WEIGHTS_T, WIDTH, exact, gradients, item_table, of_samples, sample
from helpers.slow_losses import random

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.losses.sampled_softmax import SAMPLED_SOFTMAX


@pytest.mark.usefixtures("chunk")
def test_a_sample_of_every_item_once_is_the_exact_softmax() -> None:
    hidden_TD, table = random(6, WIDTH).requires_grad_(), item_table()
    everything = sample(dict.fromkeys(range(1, ITEMS + 1), 1))
    total, loss_T = SAMPLED_SOFTMAX(of_samples(hidden_TD, table, everything), table, Settings())
    found = gradients(total, hidden_TD, table)
    expected_total, expected_T = exact(hidden_TD, table)
    torch.testing.assert_close(loss_T, expected_T, rtol=0, atol=1e-12)
    torch.testing.assert_close(total, expected_total, rtol=0, atol=1e-12)
    for a, b in zip(found, gradients(expected_total, hidden_TD, table), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk")
def test_sampled_softmax_equals_its_formula() -> None:
    """Item 4 is drawn and is a target twice; item 2 was drawn three times."""
    hidden_TD, table = random(6, WIDTH), item_table()
    table_VD = table.weight.detach()
    drawn, expected = {2: 3, 4: 1, 8: 1}, {2: 0.7, 4: 2.5, 8: 1.1}
    some = sample(drawn, expected)
    total, loss_T = SAMPLED_SOFTMAX(of_samples(hidden_TD, table, some), table, Settings())
    for h, target, loss in zip(hidden_TD, TARGETS_T.tolist(), loss_T.tolist(), strict=True):
        score = {i: float(h @ table_VD[i]) for i in range(1, ITEMS + 1)}
        others = sum(drawn[j] * math.exp(score[j]) / expected[j] for j in drawn if j != target)
        assert loss == pytest.approx(math.log(math.exp(score[target]) + others) - score[target], abs=1e-12)
    assert total.item() == pytest.approx((WEIGHTS_T * loss_T).sum().item(), abs=1e-12)
