"""Top-k and target ranks against brute force in plain Python, for any block size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.model.top_k import Ranking, Scores, rank_items, rank_targets, table_scores


def brute_force(scores: list[float], seen: set[int], target: int, k: int) -> tuple[int, list[int]]:
    """(place of the target, the k best) among unseen items, best first, ties by item id; scores[i - 1] is item i's."""
    candidates = [i for i in range(1, len(scores) + 1) if i not in seen or i == target]
    order = sorted(candidates, key=lambda i: (-scores[i - 1], i))
    return order.index(target) + 1, (order + [0] * k)[:k]


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.cumsum([0] + [len(r) for r in rows]), np.array([i for r in rows for i in r], dtype=np.int32))


def given_scores(scores_BN: Tensor, error: float = 0.0) -> Scores:
    users_B = torch.arange(len(scores_BN))
    return Scores(
        first=1,
        end=scores_BN.shape[1] + 1,
        block=lambda first, end: scores_BN[:, first - 1 : end - 1].clone(),
        of_items=lambda ids_B: (scores_BN[users_B, ids_B - 1] + error, torch.full((len(scores_BN),), 2 * abs(error))),
    )


def rank_all(scores: Scores, k: int, users: int, block_scores: int = 2**20, *, dense: bool = False) -> Ranking:
    """No item is seen, and item 1 is the target of all users."""
    nothing, target_B = ragged([[]] * users), torch.ones(users).long()
    return rank_items(scores, k, nothing, np.arange(users), target_B, block_scores, dense=dense)


def as_table(table_VD: Tensor) -> ItemTable:
    table = ItemTable(len(table_VD) - 1, table_VD.shape[1])
    table.weight = nn.Parameter(table_VD, requires_grad=False)
    return table


DENSE = pytest.mark.parametrize("dense", [False, True])
"""as on a CPU, and as on a GPU"""


@DENSE
@pytest.mark.parametrize("seed", range(200))
def test_equals_brute_force_with_ties_and_users_who_saw_everything(seed: int, dense: bool) -> None:
    """Scores have few values, so many are equal. The separately computed score is off by up to its stated error."""
    rng = np.random.default_rng(seed)
    users, items, k = int(rng.integers(1, 7)), int(rng.integers(1, 40)), int(rng.integers(1, 12))
    scores_BN = torch.from_numpy(rng.integers(0, rng.integers(1, 30), (users, items)).astype(float))
    seen = [rng.permutation(np.arange(1, items + 1))[: rng.integers(0, items + 1)].tolist() for _ in range(users)]
    seen[0] = list(range(1, items + 1))
    target_B = torch.from_numpy(rng.integers(1, items + 1, users))
    error = float(rng.choice([0, 0.7, -0.7]))
    rows = rng.permutation(users)
    expected = [brute_force(scores_BN[b].tolist(), set(seen[r]), int(target_B[b]), k) for b, r in enumerate(rows)]
    for block_scores in (1, int(rng.integers(2, 60)), 2**20):
        scores = given_scores(scores_BN, error)
        found = rank_items(scores, k, ragged(seen), rows, target_B, block_scores, dense=dense)
        assert found.target_rank_B is not None
        assert found.target_rank_B.tolist() == [rank for rank, _ in expected]
        without_lists_B = rank_targets(scores, ragged(seen), rows, target_B, block_scores)
        assert torch.equal(without_lists_B, found.target_rank_B)
        assert found.items_BK.tolist() == [best for _, best in expected]
        listed = found.items_BK > 0
        assert (found.scores_BK[~listed] == -torch.inf).all()
        at = (found.items_BK - 1).clamp(min=0)
        assert torch.equal(found.scores_BK[listed], scores_BN.gather(1, at)[listed])


@DENSE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_the_item_table_equals_sorting_all_scores(dtype: torch.dtype, dense: bool) -> None:
    """Vectors of small whole numbers make every product exact. Each item exists twice, so there are many ties."""
    generator = torch.Generator().manual_seed(0)
    hidden_BD = torch.randint(-3, 4, (9, 8), generator=generator).to(dtype)
    half_ND = torch.randint(-3, 4, (500, 8), generator=generator).to(dtype)
    table_VD = torch.cat([torch.zeros(1, 8, dtype=dtype), half_ND, half_ND])
    scores_BN = hidden_BD @ table_VD[1:].T
    target_B = torch.randint(1, 1001, (9,), generator=generator)
    for block_scores in (100, 999, 2**20):
        scores = table_scores(hidden_BD, as_table(table_VD))
        found = rank_items(scores, 20, ragged([[]] * 9), np.arange(9), target_B, block_scores, dense=dense)
        order = scores_BN.argsort(dim=1, descending=True, stable=True)
        assert torch.equal(found.items_BK, order[:, :20] + 1)
        assert found.target_rank_B is not None
        assert torch.equal(order.gather(1, found.target_rank_B[:, None] - 1)[:, 0] + 1, target_B)


def test_a_target_is_ranked_though_its_score_apart_is_rounded_otherwise() -> None:
    """Huge values cancel: the separately computed score is off by far more than the distance between scores."""
    generator = torch.Generator().manual_seed(1)
    hidden_BD = 1e3 * torch.randn(4, 64, generator=generator)
    table_VD = 1e3 * torch.randn(3001, 64, generator=generator)
    scores = table_scores(hidden_BD, as_table(table_VD))
    scores_BN = scores.block(1, 3001)
    target_B = torch.tensor([7, 1500, 3000, 2])
    found = rank_items(scores, 5, ragged([[]] * 4), np.arange(4), target_B, 4 * 3000)
    expected = (scores_BN > scores_BN.gather(1, target_B[:, None] - 1)).sum(1) + 1
    assert found.target_rank_B is not None and torch.equal(found.target_rank_B, expected)


@DENSE
def test_a_score_that_is_nan_never_flatters(dense: bool) -> None:
    """A diverged model ranks its targets after all 4 items and lists none. An item with a nan score counts as ahead."""
    lost = rank_all(given_scores(torch.full((1, 4), torch.nan)), 3, users=1, dense=dense)
    assert lost.target_rank_B is not None and lost.target_rank_B.item() > 4
    assert lost.items_BK.tolist() == [[0, 0, 0]]
    for block_scores in (1, 2, 3):
        three = given_scores(torch.tensor([[3.0, torch.nan, 1.0]]))
        partly = rank_all(three, 3, users=1, block_scores=block_scores, dense=dense)
        assert partly.target_rank_B is not None and partly.target_rank_B.tolist() == [2]
        assert partly.items_BK.tolist() == [[1, 3, 0]]


@DENSE
@pytest.mark.parametrize("seed", range(100))
def test_odd_scores_are_listed_like_sorted_ones(seed: int, dense: bool) -> None:
    """Scores are nan, infinite, zeros of both signs, or equal; nan and -inf are not listed."""
    rng = np.random.default_rng(seed)
    users, items, k = int(rng.integers(1, 7)), int(rng.integers(1, 60)), int(rng.integers(1, 12))
    values = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0, 1.0, 2.0, 3.0])
    scores_BN = torch.from_numpy(rng.choice(values, (users, items), p=rng.dirichlet(np.ones(len(values)))))
    finite_BN = scores_BN.masked_fill(scores_BN.isnan(), -torch.inf)
    expected = [sorted(range(items), key=lambda i, b=b: (-finite_BN[b, i].item(), i))[:k] for b in range(users)]
    expected = [[i + 1 if finite_BN[b, i] > -torch.inf else 0 for i in best] for b, best in enumerate(expected)]
    for block_scores in (1, int(rng.integers(2, 60)), 2**20):
        found = rank_all(given_scores(scores_BN), k, users, block_scores, dense=dense)
        assert found.items_BK.tolist() == [best + [0] * (k - len(best)) for best in expected]


def test_a_gpu_s_lists_without_ties_need_one_sweep() -> None:
    """Only users whose last place is tied make it read all scores again."""
    generator, reads = torch.Generator().manual_seed(0), []
    scores_BN = torch.randn(5, 90, generator=generator)
    for tied, sweeps in ((False, 1), (True, 2)):
        scores_BN[3, 7:60] = scores_BN.max() + 1 if tied else scores_BN[3, 7:60]
        given = given_scores(scores_BN)
        counted = replace(given, block=lambda a, b, given=given: (reads.append(b - a), given.block(a, b))[1])
        reads.clear()
        rank_all(counted, 4, users=5, block_scores=100, dense=True)
        assert sum(reads) == 90 * sweeps


@DENSE
def test_nobody_and_more_places_than_items(dense: bool) -> None:
    assert rank_all(given_scores(torch.zeros(0, 5)), 3, users=0, dense=dense).items_BK.shape == (0, 3)
    assert rank_all(given_scores(torch.zeros(1, 2)), 4, users=1, dense=dense).items_BK.tolist() == [[1, 2, 0, 0]]


def test_blocks_of_scores_share_their_memory() -> None:
    """On a CPU, a new block each time needed 104 MiB instead of 8 for the lists of 256 users over a million items."""
    table = ItemTable(9, 2)
    scores = table_scores(torch.ones(3, 2), table)
    places = {scores.block(first, first + 4).data_ptr() for first in (1, 5)}
    assert len(places) == 1
