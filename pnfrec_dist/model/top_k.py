"""Exact ranking of the catalog without seen items, block by block, so that no users x items matrix exists.

B users, N items, n items of one block, K list length.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.distributed import World
from pnfrec_dist.model.item_table import ItemTable

BLOCK_SCORES = {"cpu": 2**18, "cuda": 2**24}
"""Scores computed at a time; on a CPU as many as fit into its cache."""
FEW_BLOCKS = 4
"""This many blocks or fewer are computed as one."""


@dataclass(frozen=True)
class Scores:
    """How some users score the items first..end-1. With shards, ranks have the same users and different items."""

    first: int
    end: int
    block: Callable[[int, int], Tensor]
    """(first, end) -> scores of the items first..end-1, [B, end - first]; valid, and writable, until the next call"""
    of_items: Callable[[Tensor], tuple[Tensor, Tensor]]
    """one item id per user, [B] -> (their scores, bound of their difference to those of `block`), [B] each"""
    shards: World = field(default_factory=World)


@dataclass(frozen=True)
class Ranking:
    """The best items of each user, and the rank of the target."""

    items_BK: Tensor
    """item ids, best first, equal scores by ascending item id; PAD_ID at the end if there are fewer items"""
    scores_BK: Tensor
    """their scores; -inf for PAD_ID"""
    target_rank_B: Tensor | None
    """1-based rank of each user's target, if targets were given"""


def table_scores(hidden_BD: Tensor, table: ItemTable) -> Scores:
    """Dot products with the rows of the item table."""
    rounding = hidden_BD.shape[1] * torch.finfo(hidden_BD.dtype).eps
    buffer = hidden_BD.new_empty(0)

    @torch.no_grad()
    def block(first: int, end: int) -> Tensor:
        nonlocal buffer
        rows_nD = table.weight[first - table.first_row : end - table.first_row]
        if hidden_BD.is_cuda:
            return hidden_BD @ rows_nD.T
        # On a CPU, allocating every block anew would make the heap grow: small tensors fragment it.
        size = len(hidden_BD) * (end - first)
        buffer = buffer if len(buffer) >= size else hidden_BD.new_empty(size)
        return torch.mm(hidden_BD, rows_nD.T, out=buffer[:size].view(len(hidden_BD), -1))

    def of_items(ids_B: Tensor) -> tuple[Tensor, Tensor]:
        items_U, place_B = ids_B.unique(return_inverse=True)
        products_BD = hidden_BD * table.lookup(items_U)[place_B]
        return products_BD.sum(1), products_BD.abs().sum(1) * rounding

    return Scores(max(table.first_row, PAD_ID + 1), table.end_row, block, of_items, table.shards)


def rank_items(
    scores: Scores,
    k: int,
    seen: Ragged,
    rows: np.ndarray,
    target_B: Tensor | None = None,
    block_scores: int | None = None,
) -> Ranking:
    """The k best items of each user, without seen items, and the rank of the user's target; the same on all shards.

    User b has seen the item ids in list rows[b] of `seen`; a target stays a candidate even if it was seen. The result
    does not depend on block_scores, if the scores do not. A nan never improves a result: a nan score is not listed, and
    an item counts as behind the target only if its score is lower, or equal with a greater item id.
    """
    empty_B0 = scores.block(scores.first, scores.first)
    hide = _SeenItems(seen, rows, target_B, empty_B0.device)
    best = _Best(empty_B0, k)
    ahead = _Ahead(scores, target_B) if target_B is not None else None
    if block_scores is None:
        block_scores = BLOCK_SCORES.get(empty_B0.device.type, BLOCK_SCORES["cpu"])
        if len(rows) * (scores.end - scores.first) <= FEW_BLOCKS * block_scores:  # saves overhead per block
            block_scores *= FEW_BLOCKS
    size = max(block_scores // max(len(rows), 1), 1)
    for first in range(scores.first, scores.end, size):
        scores_Bn = scores.block(first, min(first + size, scores.end))
        hide(scores_Bn, first)
        if ahead is not None:
            ahead.count(scores_Bn, first)
        best.offer(scores_Bn, first)
    best.settle(scores.shards)
    return Ranking(best.items_BK, best.scores_BK, ahead.target_rank_B(scores.shards) if ahead is not None else None)


class _SeenItems:
    """Sets the scores of seen items in a block to -inf."""

    def __init__(self, seen: Ragged, rows: np.ndarray, keep_B: Tensor | None, device: torch.device) -> None:
        ids, lengths = seen.newest(rows, int(seen.lengths[rows].max(initial=0)))
        user, item = np.repeat(np.arange(len(rows)), lengths), ids[np.arange(ids.shape[1]) < lengths[:, None]]
        if keep_B is not None:
            other = item != keep_B.cpu().numpy()[user]
            user, item = user[other], item[other]
        order = np.argsort(item, kind="stable")
        self.items = item[order]
        self.user_S, self.item_S = (torch.from_numpy(v[order]).to(device) for v in (user, item))

    def __call__(self, scores_Bn: Tensor, first: int) -> None:
        start, end = np.searchsorted(self.items, (first, first + scores_Bn.shape[1]))
        scores_Bn[self.user_S[start:end], self.item_S[start:end] - first] = -torch.inf


class _Best:
    """The k best so far. Blocks come in order of item id, so listed items win against later ones with equal scores.

    Items that beat the last place of a list are collected until there are enough of them to sort.
    """

    def __init__(self, empty_B0: Tensor, k: int) -> None:
        self.scores_BK = empty_B0.new_full((len(empty_B0), k), -torch.inf)
        self.items_BK = torch.full_like(self.scores_BK, PAD_ID, dtype=torch.int64)
        self.user_BK = torch.arange(len(empty_B0), device=empty_B0.device)[:, None].expand(-1, k)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_waiting = 0

    def offer(self, scores_Bn: Tensor, first: int) -> None:
        k, worst_B = self.scores_BK.shape[1], self.scores_BK[:, -1]
        (better_b,) = (~(scores_Bn.amax(dim=1) <= worst_B)).nonzero(as_tuple=True)  # soon few rows; nan is not <=
        if len(better_b) == 0:
            return
        scores_bn = scores_Bn[better_b]
        is_better_bn = scores_bn > worst_B[better_b, None]
        user, place = is_better_bn.nonzero(as_tuple=True)
        if len(user) > 4 * k * len(better_b) and scores_bn.shape[1] > k:  # happens in the first blocks
            kth_b1 = scores_bn.masked_fill(~is_better_bn, -torch.inf).topk(k, dim=1).values[:, -1:]
            user, place = (is_better_bn & (scores_bn >= kth_b1)).nonzero(as_tuple=True)
        self.waiting.append((better_b[user], place + first, scores_bn[user, place]))
        self.num_waiting += len(user)
        if self.num_waiting > self.scores_BK.numel():
            self._sort_in()

    def _sort_in(self) -> None:
        users, k = self.scores_BK.shape
        held = (self.user_BK.flatten(), self.items_BK.flatten(), self.scores_BK.flatten())
        user, item, score = (torch.cat(parts) for parts in zip(held, *self.waiting, strict=True))
        order = score.argsort(descending=True, stable=True)
        order = order[user[order].argsort(stable=True)]
        count_B = user.bincount(minlength=users)
        place = torch.arange(len(order), device=order.device) - (count_B.cumsum(0) - count_B)[user[order]]
        order = order[place < k]
        self.items_BK, self.scores_BK = item[order].view(users, k), score[order].view(users, k)
        self.waiting, self.num_waiting = [], 0

    def settle(self, shards: World) -> None:
        """Makes the final list, over all blocks and shards. The item ids of shards ascend with the rank."""
        self._sort_in()
        if shards.size > 1:
            users, k = self.scores_BK.shape
            sizes = [users] * shards.size
            scores, items = (
                shards.gather_rows(t, sizes).view(shards.size, users, k).transpose(0, 1).reshape(users, -1)
                for t in (self.scores_BK, self.items_BK)
            )
            order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
            self.scores_BK, self.items_BK = scores.gather(1, order), items.gather(1, order)


class _Ahead:
    """Counts the items ahead of each user's target in one sweep.

    The target's exact score is only known when its block comes. Items are compared with a separately computed score of
    the target. Those within its rounding error are kept and compared with the exact score at the end.
    """

    def __init__(self, scores: Scores, target_B: Tensor) -> None:
        self.target_B = target_B
        about_B, margin_B = scores.of_items(target_B)
        self.low_B1, self.high_B1 = (about_B - margin_B)[:, None], (about_B + margin_B)[:, None]
        self.ahead_B = torch.zeros_like(target_B)
        nobody = torch.empty(0, dtype=torch.int64, device=target_B.device)
        self.near = [(nobody, nobody, about_B[:0])]

    def count(self, scores_Bn: Tensor, first: int) -> None:
        below_Bn, above_Bn = scores_Bn < self.low_B1, ~(scores_Bn <= self.high_B1)
        self.ahead_B += above_Bn.sum(1)
        user, place = (~(below_Bn | above_Bn)).nonzero(as_tuple=True)
        self.near.append((user, place + first, scores_Bn[user, place]))

    def target_rank_B(self, shards: World) -> Tensor:
        user, item, score = (torch.cat(parts) for parts in zip(*self.near, strict=True))
        own = item == self.target_B[user]
        exact_B, is_known_B = torch.zeros_like(self.low_B1[:, 0]), torch.zeros_like(self.target_B)
        exact_B[user[own]], is_known_B[user[own]] = score[own], 1
        exact_B = shards.sum(exact_B).masked_fill(shards.sum(is_known_B) == 0, torch.nan)[user]
        is_behind = (score < exact_B) | ((score == exact_B) & (item >= self.target_B[user]))
        return shards.sum(self.ahead_B.index_add(0, user, (~is_behind).long())) + 1
