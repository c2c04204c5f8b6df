"""Properties of every loss over some items."""

import numpy as np
import pytest
import torch
from helpers.sampled import TARGETS_T, WEIGHTS_T, WIDTH, gradients, item_table, of_samples, sample, settings
from helpers.slow_losses import random
from torch import Tensor, nn

from pnfrec_dist.losses.catalog_loss import CatalogLoss, Samples, Targets
from pnfrec_dist.losses.gbce import GBCE
from pnfrec_dist.losses.sampled_softmax import SAMPLED_SOFTMAX
from pnfrec_dist.losses.sce import SCE


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("loss", [SAMPLED_SOFTMAX, GBCE])
def test_gradients_of_a_shared_sample(loss: CatalogLoss) -> None:
    some, table = sample({2: 3, 4: 1, 8: 1}), item_table()

    def total(hidden_TD: Tensor, target_TD: Tensor, sampled_KD: Tensor) -> Tensor:
        targets = Targets(hidden_TD, TARGETS_T, WEIGHTS_T, Samples(target_TD, sampled_KD, some))
        return loss(targets, table, settings(gbce_calibration=0.6))[0]

    inputs = tuple(random(n, WIDTH, seed=n).requires_grad_() for n in (6, 6, 3))
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("loss", [SAMPLED_SOFTMAX, GBCE, SCE])
def test_no_targets_give_zero_and_whole_gradients(loss: CatalogLoss) -> None:
    hidden_TD, table = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True), item_table()
    nothing, weights_T = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    some = sample({2: 3, 8: 1})
    samples = Samples(table.lookup(nothing), table.lookup(some.items_K), some)
    total, loss_T = loss(Targets(hidden_TD, nothing, weights_T, samples), table, settings(sce_buckets=2))
    total.backward()
    assert total.item() == 0 and len(loss_T) == 0
    assert hidden_TD.grad is not None and hidden_TD.grad.shape == (0, WIDTH)


@pytest.mark.parametrize("loss", [SAMPLED_SOFTMAX, GBCE, SCE])
def test_finite_at_huge_logits(loss: CatalogLoss) -> None:
    hidden_TD, table = (1e4 * random(6, WIDTH).float()).requires_grad_(), item_table()
    table.weight = nn.Parameter(table.weight.detach().float())
    some = sample({2: 3, 4: 1, 8: 1})
    total, _ = loss(of_samples(hidden_TD, table, some), table, settings(sce_buckets=2))
    found = gradients(total, hidden_TD, table)
    assert total.isfinite() and all(g.isfinite().all() for g in found)
    assert np.isfinite(total.item())
