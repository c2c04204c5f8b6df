"""Model + holdout shard -> metrics (DESIGN: all items minus seen ones, p / n / delta, coverage)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config import EvaluationSettings
from pnfrec_dist.data.batch import history_batch
from pnfrec_dist.data.epoch_plan import rank_share
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.distributed import World
from pnfrec_dist.metrics import coverage, summarize
from pnfrec_dist.model.dual_encoder import DualEncoder
from pnfrec_dist.retrieval import hide_seen, target_ranks, top_items

ScoreRows = Callable[[np.ndarray], Tensor]
"""Rows of a holdout shard -> a new tensor of scores [rows, num_items + 1], column = item_id, padding at -inf."""


def model_scores(model: DualEncoder, holdout: HoldoutData, world: World) -> ScoreRows:
    """Scores of the positive encoder after each user's newest positives."""

    def score(rows: np.ndarray) -> Tensor:
        return model.scores(*history_batch(holdout.positive, rows, model.max_length, world.device))

    return score


def popularity_scores(item_counts: np.ndarray, world: World) -> ScoreRows:
    """The same for everybody: train interactions of each item. item_counts: [num_items + 1]."""
    counts_V = torch.from_numpy(item_counts).double().to(world.device)
    counts_V[0] = -torch.inf

    def score(rows: np.ndarray) -> Tensor:
        return counts_V.repeat(len(rows), 1)

    return score


@torch.inference_mode()
def evaluate(
    score_rows: ScoreRows, holdout: HoldoutData, num_items: int, settings: EvaluationSettings, world: World
) -> dict[str, float]:
    """Metrics over all users of a holdout shard, spread over the ranks, the same result on each.

    A target that the user has met before stays a candidate.
    """
    users = np.arange(len(holdout))
    mine = rank_share(users, world.rank, world.size)
    ranks_U = torch.zeros(len(users), dtype=torch.int64, device=world.device)
    listed_KV = torch.zeros(len(settings.cutoffs), num_items + 1, dtype=torch.int64, device=world.device)
    for start in range(0, len(mine), settings.batch_size):
        rows = mine[start : start + settings.batch_size]
        target_B = torch.from_numpy(holdout.target_item[rows].astype(np.int64)).to(world.device)
        scores_BV = hide_seen(score_rows(rows), holdout.seen, rows, keep_B=target_B)
        ranks_U[torch.from_numpy(rows).to(world.device)] = target_ranks(scores_BV, target_B)
        best_BK = top_items(scores_BV, max(settings.cutoffs))
        for place, k in enumerate(settings.cutoffs):
            listed_KV[place, best_BK[:, :k].flatten()] = 1
    ranks = world.sum(ranks_U).cpu().numpy()
    listed = world.sum(listed_KV).cpu().numpy()[:, 1:] > 0
    result = summarize(ranks, holdout.target_is_positive.astype(bool), settings.cutoffs)
    result.update({f"coverage_at_{k}": coverage(listed[place]) for place, k in enumerate(settings.cutoffs)})
    return result
