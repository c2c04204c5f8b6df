"""Lists from candidates of an index: their exact scores, without seen and hidden items.

B users, C candidates of each, D width, K list length, V = N + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.model.top_k import Ranking

Candidates = Callable[[Tensor, int], Tensor]
"""(user vectors [B, D], C) -> item ids [B, C], PAD_ID where there are fewer."""
ABOUT = "index.json"
"""The file that identifies an index (item_index.py)."""
FURTHER = (64, 1_000)
"""Candidates beyond K, for the items that a user has seen: first the few that most users need, then, for those who lack
items, more. Who still lacks items is ranked exactly."""


@dataclass(frozen=True)
class Listed:
    """What may be listed."""

    k: int
    seen: Ragged
    rows: np.ndarray
    """rows of `seen` that are the users, [B]"""
    is_hidden_V: Tensor | None
    """items that are hidden from all users"""


def rank_candidates(
    candidates: Candidates, hidden_BD: Tensor, table: ItemTable, listed: Listed, exact: Callable[[Tensor], Ranking]
) -> Ranking:
    """The best K candidates of each user by their exact scores, as rank_items gives them.

    exact: ranks the whole catalog for the users of a mask, [B]; it is asked for users with fewer than K candidates that
    may be listed.
    """
    users = len(listed.rows)
    items_BK = torch.full((users, listed.k), PAD_ID)
    scores_BK = torch.full((users, listed.k), -torch.inf)
    lacks_B = torch.ones(users, dtype=torch.bool)
    for further in FURTHER:
        places = lacks_B.nonzero()[:, 0]
        if len(places):
            part = replace(listed, rows=listed.rows[places.numpy()])
            longest = int(part.seen.lengths[part.rows].max(initial=0))
            count = min(listed.k + min(longest, further), table.num_items)
            found_BC = candidates(hidden_BD[places], count)
            items_BK[places], scores_BK[places] = _best(found_BC, hidden_BD[places], table, part)
            lacks_B = (items_BK == PAD_ID).any(dim=1)
    if lacks_B.any():
        found = exact(lacks_B)
        items_BK[lacks_B], scores_BK[lacks_B] = found.items_BK, found.scores_BK
    return Ranking(items_BK, scores_BK, None)


def _best(items_BC: Tensor, hidden_BD: Tensor, table: ItemTable, listed: Listed) -> tuple[Tensor, Tensor]:
    """(items, scores) of the best K candidates that may be listed, [B, K] each; PAD_ID and -inf if there are fewer."""
    items_BC = items_BC.sort(dim=1).values
    scores_BC = torch.bmm(table.weight[items_BC], hidden_BD[:, :, None])[:, :, 0]
    may_not_BC = (items_BC == PAD_ID) | _is_seen(items_BC, listed, table.num_items + 1)
    if listed.is_hidden_V is not None:
        may_not_BC |= listed.is_hidden_V[items_BC]
    scores_BC = F.pad(scores_BC.masked_fill(may_not_BC, -torch.inf), (0, listed.k), value=-torch.inf)
    items_BC = F.pad(items_BC, (0, listed.k), value=PAD_ID)
    order_BK = scores_BC.argsort(dim=1, descending=True, stable=True)[:, : listed.k]
    scores_BK, items_BK = scores_BC.gather(1, order_BK), items_BC.gather(1, order_BK)
    return items_BK.masked_fill(scores_BK == -torch.inf, PAD_ID), scores_BK


def _is_seen(items_BC: Tensor, listed: Listed, num_rows: int) -> Tensor:
    """Whether each candidate is among the user's seen items."""
    user, item = listed.seen.pairs(listed.rows)
    seen = np.sort(user.astype(np.int64) * num_rows + item)
    asked = (torch.arange(len(items_BC))[:, None] * num_rows + items_BC).numpy()
    if not len(seen):
        return torch.zeros(items_BC.shape, dtype=torch.bool)
    places = np.minimum(np.searchsorted(seen, asked), len(seen) - 1)
    return torch.from_numpy(seen[places] == asked)
