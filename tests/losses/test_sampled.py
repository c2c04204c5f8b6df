"""Losses over some items: against their formulas in plain Python, and where they must equal the exact one."""

import math

import numpy as np
import pytest
import torch
from helpers.slow_losses import random
from torch import Tensor, nn

from pnfrec_dist.config.settings import SampledSettings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.losses import sampled as module
from pnfrec_dist.losses.cross_entropy import Tiling, cross_entropy
from pnfrec_dist.losses.sampled import gbce, sampled_softmax, sce
from pnfrec_dist.model.item_table import ItemTable

ITEMS, WIDTH = 9, 4
TARGETS_T = torch.tensor([2, 9, 4, 4, 1, 7])
WEIGHTS_T = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3], dtype=torch.float64)


@pytest.fixture(params=[1 << 21, 10], ids=["one chunk", "chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", request.param)


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


@pytest.mark.usefixtures("chunk")
def test_a_sample_of_every_item_once_is_the_exact_softmax() -> None:
    hidden_TD, table = random(6, WIDTH).requires_grad_(), item_table()
    everything = sample(dict.fromkeys(range(1, ITEMS + 1), 1))
    vectors_VD = table.weight
    total, loss_T = sampled_softmax(
        hidden_TD, vectors_VD[TARGETS_T], TARGETS_T, vectors_VD[everything.items_K], everything, WEIGHTS_T
    )
    found = gradients(total, hidden_TD, table)
    expected_total, expected_T = exact(hidden_TD, table)
    torch.testing.assert_close(loss_T, expected_T, rtol=0, atol=1e-12)
    torch.testing.assert_close(total, expected_total, rtol=0, atol=1e-12)
    for a, b in zip(found, gradients(expected_total, hidden_TD, table), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk")
def test_sampled_softmax_equals_its_formula() -> None:
    """Item 4 is drawn and is a target twice; item 2 was drawn three times."""
    hidden_TD, table_VD = random(6, WIDTH), item_table().weight.detach()
    drawn, expected = {2: 3, 4: 1, 8: 1}, {2: 0.7, 4: 2.5, 8: 1.1}
    some = sample(drawn, expected)
    total, loss_T = sampled_softmax(hidden_TD, table_VD[TARGETS_T], TARGETS_T, table_VD[some.items_K], some, WEIGHTS_T)
    for h, target, loss in zip(hidden_TD, TARGETS_T.tolist(), loss_T.tolist(), strict=True):
        score = {i: float(h @ table_VD[i]) for i in range(1, ITEMS + 1)}
        others = sum(drawn[j] * math.exp(score[j]) / expected[j] for j in drawn if j != target)
        assert loss == pytest.approx(math.log(math.exp(score[target]) + others) - score[target], abs=1e-12)
    assert total.item() == pytest.approx((WEIGHTS_T * loss_T).sum().item(), abs=1e-12)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_its_formula(calibration: float) -> None:
    hidden_TD, table_VD = random(6, WIDTH), item_table().weight.detach()
    drawn = {2: 3, 4: 1, 8: 1}
    some = sample(drawn)
    _, loss_T = gbce(
        hidden_TD, table_VD[TARGETS_T], TARGETS_T, table_VD[some.items_K], some, WEIGHTS_T, ITEMS, calibration
    )
    share = 5 / (ITEMS - 1)
    power = share * (calibration * (1 - 1 / share) + 1 / share)
    assert calibration or power == pytest.approx(1.0)

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    for h, target, loss in zip(hidden_TD, TARGETS_T.tolist(), loss_T.tolist(), strict=True):
        expected = -math.log(sigmoid(float(h @ table_VD[target])) ** power)
        expected -= sum(m * math.log(1 - sigmoid(float(h @ table_VD[j]))) for j, m in drawn.items() if j != target)
        assert loss == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("name", ["sampled_softmax", "gbce"])
def test_gradients_of_a_shared_sample(name: str) -> None:
    some = sample({2: 3, 4: 1, 8: 1})

    def total(hidden_TD: Tensor, target_TD: Tensor, sampled_KD: Tensor) -> Tensor:
        inputs = (hidden_TD, target_TD, TARGETS_T, sampled_KD, some, WEIGHTS_T)
        return (sampled_softmax(*inputs) if name == "sampled_softmax" else gbce(*inputs, ITEMS, 0.6))[0]

    inputs = tuple(random(n, WIDTH, seed=n).requires_grad_() for n in (6, 6, 3))
    assert torch.autograd.gradcheck(total, inputs)


def test_sce_whose_buckets_pick_everything_is_the_exact_softmax() -> None:
    hidden_TD, table = random(6, WIDTH).requires_grad_(), item_table()
    settings = SampledSettings(sce_buckets=2, sce_targets=50, sce_items=50)
    total, loss_T = sce(hidden_TD, table, TARGETS_T, WEIGHTS_T, settings)
    found = gradients(total, hidden_TD, table)
    expected_total, expected_T = exact(hidden_TD, table)
    torch.testing.assert_close(loss_T, expected_T, rtol=0, atol=1e-12)
    for a, b in zip(found, gradients(expected_total, hidden_TD, table), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_sce_equals_its_description() -> None:
    """Buckets, picks and the largest loss of each target, one by one."""
    hidden_TD, table = random(6, WIDTH), item_table()
    settings = SampledSettings(sce_buckets=3, sce_targets=2, sce_items=4)
    torch.manual_seed(5)
    total, loss_T = sce(hidden_TD, table, TARGETS_T, WEIGHTS_T, settings)
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


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce", "sce"])
def test_no_targets_give_zero_and_whole_gradients(name: str) -> None:
    hidden_TD, table = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True), item_table()
    nothing, weights_T = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    some = sample({2: 3, 8: 1})
    if name == "sce":
        total, loss_T = sce(hidden_TD, table, nothing, weights_T, SampledSettings(sce_buckets=2))
    else:
        inputs = (hidden_TD, table.lookup(nothing), nothing, table.lookup(some.items_K), some, weights_T)
        total, loss_T = sampled_softmax(*inputs) if name == "sampled_softmax" else gbce(*inputs, ITEMS, 0.5)
    total.backward()
    assert total.item() == 0 and len(loss_T) == 0
    assert hidden_TD.grad is not None and hidden_TD.grad.shape == (0, WIDTH)


@pytest.mark.parametrize("name", ["sampled_softmax", "gbce", "sce"])
def test_finite_at_huge_logits(name: str) -> None:
    hidden_TD, table = (1e4 * random(6, WIDTH).float()).requires_grad_(), item_table()
    table.weight = nn.Parameter(table.weight.detach().float())
    some = sample({2: 3, 4: 1, 8: 1})
    if name == "sce":
        total, _ = sce(hidden_TD, table, TARGETS_T, WEIGHTS_T, SampledSettings(sce_buckets=2))
    else:
        vectors_VD = table.weight
        inputs = (hidden_TD, vectors_VD[TARGETS_T], TARGETS_T, vectors_VD[some.items_K], some, WEIGHTS_T)
        total, _ = sampled_softmax(*inputs) if name == "sampled_softmax" else gbce(*inputs, ITEMS, 0.5)
    found = gradients(total, hidden_TD, table)
    assert total.isfinite() and all(g.isfinite().all() for g in found)
    assert np.isfinite(total.item())
