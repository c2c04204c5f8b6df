"""Ranking of the catalog with the seen filter.

B users, V = N + 1 columns (item ids), K list length.
"""

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.data.prepared import Ragged
from pnfrec_dist.schema import PAD_ID


def hide_seen(scores_BV: Tensor, seen: Ragged, rows: np.ndarray, keep_B: Tensor | None = None) -> Tensor:
    """Scores with every user's seen items at -inf, in place; keep_B: one item id per user that stays."""
    users_B = torch.arange(len(rows), device=scores_BV.device)
    kept = scores_BV[users_B, keep_B] if keep_B is not None else None
    ids, lengths = seen.newest(rows, int(seen.lengths[rows].max(initial=0)))
    user = np.repeat(np.arange(len(rows)), lengths)
    item = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    scores_BV[torch.from_numpy(user).to(scores_BV.device), torch.from_numpy(item).to(scores_BV.device)] = -torch.inf
    if keep_B is not None and kept is not None:
        scores_BV[users_B, keep_B] = kept
    return scores_BV


def target_ranks(scores_BV: Tensor, target_B: Tensor) -> Tensor:
    """1-based place of each target among its user's scores; equal scores stand in order of item id.

    Only what is surely not ahead of the target counts as behind it, so a score that is nan never flatters.
    """
    target_score_B1 = scores_BV.gather(1, target_B[:, None])
    ids_V = torch.arange(scores_BV.shape[1], device=scores_BV.device)
    behind_BV = (scores_BV < target_score_B1) | ((scores_BV == target_score_B1) & (ids_V >= target_B[:, None]))
    return (~behind_BV).sum(1) + 1


def top_items(scores_BV: Tensor, k: int) -> Tensor:
    """Item ids of the k best scores, best first, [B, K], K = min(k, items); PAD_ID where only hidden items are left."""
    best = scores_BV.topk(min(k, scores_BV.shape[1] - 1), dim=1)
    return best.indices.masked_fill(best.values == -torch.inf, PAD_ID)
