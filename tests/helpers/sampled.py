"""Shared by tests of the losses over some items: six targets among nine items."""

import torch
from torch import Tensor, nn

from helpers.slow_losses import random
from pnfrec_dist.config.settings import SampledSettings, Settings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.losses.catalog_loss import Samples, Targets
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.tiling import Tiling
from pnfrec_dist.model.item_table import ItemTable

ITEMS, WIDTH = 9, 4
TARGETS_T = torch.tensor([2, 9, 4, 4, 1, 7])
WEIGHTS_T = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3], dtype=torch.float64)


def settings(**sampled: float) -> Settings:
    return Settings(sampled=SampledSettings(**sampled))  # type: ignore[arg-type]


def of_samples(hidden_TD: Tensor, table: ItemTable, some: Sampled) -> Targets:
    """The targets above, with the vectors that a loss over sampled items compares."""
    vectors_VD = table.weight
    samples = Samples(vectors_VD[TARGETS_T], vectors_VD[some.items_K], some)
    return Targets(hidden_TD, TARGETS_T, WEIGHTS_T, samples)


def item_table() -> ItemTable:
    table = ItemTable(ITEMS, WIDTH)
    weight = random(ITEMS + 1, WIDTH, seed=3)
    weight[0] = 0.0
    table.weight = nn.Parameter(weight)
    return table


def sample(drawn: dict[int, int], expected: dict[int, float] | None = None) -> Sampled:
    items_K = torch.tensor(sorted(drawn))
    drawn_K = torch.tensor([drawn[i] for i in sorted(drawn)])
    expected_K = torch.tensor([(expected or drawn)[i] for i in sorted(drawn)], dtype=torch.float64)
    return Sampled(items_K, items_K, drawn_K, (expected_K / drawn_K).log(), sum(drawn.values()))


def exact(hidden_TD: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    return cross_entropy(hidden_TD, table, TARGETS_T, WEIGHTS_T, Tiling(99, 99, "one"))


def gradients(total: Tensor, hidden_TD: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
    hidden_TD.grad = table.weight.grad = None
    total.backward()
    table.collect_gradients()
    assert hidden_TD.grad is not None and table.weight.grad is not None
    return hidden_TD.grad, table.weight.grad
