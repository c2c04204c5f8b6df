"""Losses over some items: against their formulas in plain Python, and where they must equal the exact one."""

import math

import numpy as np
import pytest
import torch
from helpers.slow_losses import random
from torch import Tensor, nn

from pnfrec_dist.config.settings import SampledSettings, Settings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.losses import chunks
from pnfrec_dist.losses.catalog_loss import CatalogLoss, Samples, Targets
from pnfrec_dist.losses.cross_entropy import Tiling, cross_entropy
from pnfrec_dist.losses.gbce import GBCE
from pnfrec_dist.losses.sampled_softmax import SAMPLED_SOFTMAX
from pnfrec_dist.losses.sce import SCE
from pnfrec_dist.model.item_table import ItemTable

ITEMS, WIDTH = 9, 4
TARGETS_T = torch.tensor([2, 9, 4, 4, 1, 7])
WEIGHTS_T = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.3], dtype=torch.float64)


@pytest.fixture(params=[1 << 21, 10], ids=["one chunk", "chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", request.param)


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


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_its_formula(calibration: float) -> None:
    hidden_TD, table = random(6, WIDTH), item_table()
    table_VD = table.weight.detach()
    drawn = {2: 3, 4: 1, 8: 1}
    some = sample(drawn)
    _, loss_T = GBCE(of_samples(hidden_TD, table, some), table, settings(gbce_calibration=calibration))
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
@pytest.mark.parametrize("loss", [SAMPLED_SOFTMAX, GBCE])
def test_gradients_of_a_shared_sample(loss: CatalogLoss) -> None:
    some, table = sample({2: 3, 4: 1, 8: 1}), item_table()

    def total(hidden_TD: Tensor, target_TD: Tensor, sampled_KD: Tensor) -> Tensor:
        targets = Targets(hidden_TD, TARGETS_T, WEIGHTS_T, Samples(target_TD, sampled_KD, some))
        return loss(targets, table, settings(gbce_calibration=0.6))[0]

    inputs = tuple(random(n, WIDTH, seed=n).requires_grad_() for n in (6, 6, 3))
    assert torch.autograd.gradcheck(total, inputs)


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
