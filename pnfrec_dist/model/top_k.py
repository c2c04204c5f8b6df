"""Exact ranking of the catalog without seen items, block by block, so that no users x items matrix exists.

B users, N items, n items of one block, K list length.
"""

from collections.abc import Callable, Iterator
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
    *,
    dense: bool | None = None,
) -> Ranking:
    """The k best items of each user, without seen items, and the rank of the user's target; the same on all shards.

    User b has seen the item ids in list rows[b] of `seen`; a target stays a candidate even if it was seen. The result
    does not depend on block_scores, if the scores do not. A nan never improves a result: a nan score is not listed, and
    an item counts as behind the target only if its score is lower, or equal with a greater item id.

    dense: how lists are made, _DenseBest (None: on GPUs only) or _Best; it does not change them.
    """
    empty_B0 = scores.block(scores.first, scores.first)
    blocks = _UnseenBlocks(scores, _block_size(scores, len(rows), block_scores), seen, rows, target_B)
    ahead = _Ahead(scores, target_B) if target_B is not None else None
    dense = empty_B0.is_cuda if dense is None else dense
    best = _DenseBest(empty_B0, k, blocks) if dense else _Best(empty_B0, k)
    for first, scores_Bn in blocks:
        if ahead is not None:
            ahead.count(scores_Bn, first)
        best.offer(scores_Bn, first)
    scores_BK, items_BK = _over_shards(*best.lists(), scores.shards)
    return Ranking(items_BK, scores_BK, ahead.target_rank_B(scores.shards) if ahead is not None else None)


def rank_targets(
    scores: Scores, seen: Ragged, rows: np.ndarray, target_B: Tensor, block_scores: int | None = None
) -> Tensor:
    """target_rank_B of rank_items, without lists."""
    ahead = _Ahead(scores, target_B)
    for first, scores_Bn in _UnseenBlocks(scores, _block_size(scores, len(rows), block_scores), seen, rows, target_B):
        ahead.count(scores_Bn, first)
    return ahead.target_rank_B(scores.shards)


def _block_size(scores: Scores, users: int, block_scores: int | None) -> int:
    """Items of a block."""
    if block_scores is None:
        device = scores.block(scores.first, scores.first).device.type
        block_scores = BLOCK_SCORES.get(device, BLOCK_SCORES["cpu"])
        if users * (scores.end - scores.first) <= FEW_BLOCKS * block_scores:  # saves overhead per block
            block_scores *= FEW_BLOCKS
    return max(block_scores // max(users, 1), 1)


def _over_shards(scores_BK: Tensor, items_BK: Tensor, shards: World) -> tuple[Tensor, Tensor]:
    """The best of all shards' lists, the same on each. The item ids of shards ascend with the rank."""
    if shards.size == 1:
        return scores_BK, items_BK
    users, k = scores_BK.shape
    sizes = [users] * shards.size
    scores, items = (
        shards.gather_rows(t, sizes).view(shards.size, users, k).transpose(0, 1).reshape(users, -1)
        for t in (scores_BK, items_BK)
    )
    return _k_best(scores, items, k)


def _k_best(scores_BX: Tensor, items_BX: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row. Equal scores must stand in the order of their item ids."""
    order_BK = scores_BX.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores_BX.gather(1, order_BK), items_BX.gather(1, order_BK)


class _UnseenBlocks:
    """Blocks of `size` items in order of item id: (first item, scores with those of seen items set to -inf)."""

    def __init__(self, scores: Scores, size: int, seen: Ragged, rows: np.ndarray, keep_B: Tensor | None) -> None:
        """keep_B: one item per user that is not hidden."""
        self.scores, self.size = scores, size
        self.firsts = range(scores.first, scores.end, size)
        user, item = seen.pairs(rows)
        is_hidden = (item >= scores.first) & (item < scores.end)
        if keep_B is not None:
            is_hidden &= item != keep_B.cpu().numpy()[user]
        if not is_hidden.all():
            user, item = user[is_hidden], item[is_hidden]
        if len(self.firsts) > 1:
            # numpy sorts numbers of 16 bits by radix, several times faster than item ids.
            block = ((item - scores.first) // size).astype(np.min_scalar_type(len(self.firsts)))
            order = np.argsort(block, kind="stable")
            user, item = user[order], item[order]
            self.ends = np.cumsum(np.bincount(block, minlength=len(self.firsts))).tolist()
        else:
            self.ends = [len(item)] * len(self.firsts)
        device = scores.block(scores.first, scores.first).device
        self.user_S, self.item_S = (torch.from_numpy(v.astype(np.int64, copy=False)).to(device) for v in (user, item))

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        start = 0
        for first, end in zip(self.firsts, self.ends, strict=True):
            scores_Bn = self.scores.block(first, min(first + self.size, self.scores.end))
            scores_Bn[self.user_S[start:end], self.item_S[start:end] - first] = -torch.inf
            yield first, scores_Bn
            start = end


class _Best:
    """The k best so far. Blocks come in order of item id, so listed items win against later ones with equal scores.

    Items that beat the last place of a list are collected until there are enough of them to sort.
    """

    def __init__(self, empty_B0: Tensor, k: int) -> None:
        self.scores_BK, self.items_BK = _no_items(empty_B0, k)
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

    def lists(self) -> tuple[Tensor, Tensor]:
        """(scores, item ids), [B, K] each."""
        self._sort_in()
        return self.scores_BK, self.items_BK


class _DenseBest:
    """_Best for GPUs: each block takes the same few steps on whole tensors, so that the host never waits for a GPU.

    torch.topk may take any of the items whose scores equal the last one taken, and takes nan first. Where this may
    matter, which is rare, `lists` makes the user's list again with _Best.
    """

    def __init__(self, empty_B0: Tensor, k: int, blocks: _UnseenBlocks) -> None:
        """blocks: those that will be offered."""
        self.empty_B0, self.blocks = empty_B0, blocks
        self.scores_BK, self.items_BK = _no_items(empty_B0, k)
        self.tied_B = empty_B0.new_full((len(empty_B0),), -torch.inf)
        """the highest score of which a block has more items than were taken; nan after a nan"""

    def offer(self, scores_Bn: Tensor, first: int) -> None:
        k = self.scores_BK.shape[1]
        best_Bk, place_Bk = scores_Bn.topk(min(k + 1, scores_Bn.shape[1]), dim=1)
        self.tied_B = self.tied_B.masked_fill(best_Bk[:, 0].isnan(), torch.nan)
        if best_Bk.shape[1] > k:
            tied_B = best_Bk[:, k].masked_fill(best_Bk[:, k] != best_Bk[:, k - 1], -torch.inf)
            self.tied_B = torch.maximum(self.tied_B, tied_B)  # a nan stays
        place_Bk, order_Bk = place_Bk[:, :k].sort(dim=1)  # equal scores by ascending item id, after the listed items
        scores_BX = torch.cat([self.scores_BK, best_Bk.gather(1, order_Bk)], dim=1)
        self.scores_BK, self.items_BK = _k_best(scores_BX, torch.cat([self.items_BK, place_Bk + first], dim=1), k)

    def lists(self) -> tuple[Tensor, Tensor]:
        """(scores, item ids), [B, K] each."""
        is_sure_B = (self.tied_B == -torch.inf) | (self.tied_B < self.scores_BK[:, -1])
        (unsure_b,) = (~is_sure_B).nonzero(as_tuple=True)
        if len(unsure_b):
            best = _Best(self.empty_B0[unsure_b], self.scores_BK.shape[1])
            for first, scores_Bn in self.blocks:
                best.offer(scores_Bn[unsure_b], first)
            self.scores_BK[unsure_b], self.items_BK[unsure_b] = best.lists()
        return self.scores_BK, self.items_BK


def _no_items(empty_B0: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(scores, item ids) of lists without items."""
    scores_BK = empty_B0.new_full((len(empty_B0), k), -torch.inf)
    return scores_BK, torch.full_like(scores_BK, PAD_ID, dtype=torch.int64)


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
