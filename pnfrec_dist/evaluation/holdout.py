"""Evaluates a model on holdout users: ranks all items minus seen ones -> metrics (p, n, delta; coverage)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.batches import HistoryBatch
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.epoch_plan import rank_share
from pnfrec_dist.data.points import Points
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.metrics import coverage, measures_of, summarize
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreParts
from pnfrec_dist.model.top_k import Scores, rank_items, table_scores

ScoreUsers = Callable[[HoldoutData], Scores]
"""Some users or points -> how they score the catalog."""
Ranked = HoldoutData | Points
"""What is ranked: holdout users, or points."""


@dataclass(frozen=True)
class Evaluation:
    """The result for all users of the holdout data."""

    metrics: dict[str, float]
    target_rank: np.ndarray
    """1-based rank of each target, int64 [U]"""


def users_of_full_lists(holdout: HoldoutData, num_items: int, length: int) -> int:
    """The users who have at most `length` unseen items, so that every list of this length holds their target."""
    return int(np.count_nonzero(holdout.seen.lengths >= num_items - length))


def model_scores(model: PNFRec, world: World, gamma: float = 0.0) -> ScoreUsers:
    """Scores of the main encoder from each user's newest items, minus gamma times those as the next dislike.

    With gamma, a model with a negative encoder needs HoldoutData.negative.
    """

    def score(users: HoldoutData) -> Scores:
        hidden_BD = model.last_hidden(_batch(users.history, model, world), gamma)
        if gamma and model.encoders.negative is not None:
            hidden_BD = hidden_BD - gamma * _disliking(model, users, world)
        return table_scores(hidden_BD, model.item_table)

    return score


def model_parts(model: PNFRec, users: HoldoutData, world: World) -> ScoreParts:
    """The parts of what scores the catalog for each user, those of next dislikes included.

    A model with a negative encoder needs HoldoutData.negative.
    """
    parts = model.last_parts(_batch(users.history, model, world))
    if model.encoders.negative is not None:
        parts = parts._replace(dislikes_PD=_disliking(model, users, world))
    return parts


def _disliking(model: PNFRec, users: HoldoutData, world: World) -> Tensor:
    """The negative encoder's output at each user's newest negative, [B, D]; 0 for users without negatives."""
    assert users.negative is not None
    has_any_B = torch.from_numpy(users.negative.lengths > 0).to(world.device)
    return model.last_negative_hidden(_batch(users.negative, model, world)) * has_any_B[:, None]


def _batch(histories: Ragged, model: PNFRec, world: World) -> HistoryBatch:
    return history_batch(histories, np.arange(len(histories)), model.max_length, world.device)


@torch.inference_mode()
def evaluate(
    score_users: ScoreUsers,
    holdout: Ranked,
    num_items: int,
    settings: EvaluationSettings,
    world: World,
    *,
    share_catalog: bool = False,
    on_batch: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Ranks the catalog for all holdout users or points; the same result on every rank.

    Ranks share the users, or with share_catalog (a sharded item table) the catalog. A target that the user has already
    seen stays a candidate. on_batch is called after each batch, with the share that is done.
    """
    users = np.arange(len(holdout))
    mine = users if share_catalog else rank_share(users, world.rank, world.size)
    ranks_U = torch.zeros(len(users), dtype=torch.int64, device=world.device)
    listed_KV = torch.zeros(len(settings.cutoffs), num_items + 1, dtype=torch.uint8, device=world.device)
    for start in range(0, len(mine), settings.batch_size):
        rows = mine[start : start + settings.batch_size]
        part = holdout.part(rows)
        target_B = torch.from_numpy(part.target_item.astype(np.int64)).to(world.device)
        ranking = rank_items(score_users(part), max(settings.cutoffs), part.seen, np.arange(len(part)), target_B)
        assert ranking.target_rank_B is not None
        ranks_U[torch.from_numpy(rows).to(world.device)] = ranking.target_rank_B
        for place, k in enumerate(settings.cutoffs):
            listed_KV[place, ranking.items_BK[:, :k].flatten()] = 1
        on_batch(min(start + settings.batch_size, len(mine)) / len(mine))
    if not share_catalog:
        ranks_U, listed_KV = world.sum(ranks_U), world.max(listed_KV)
    ranks, listed = ranks_U.cpu().numpy(), listed_KV.cpu().numpy()[:, 1:] > 0
    is_positive, measures = holdout.target_is_positive.astype(bool), measures_of(settings.measures)
    metrics = summarize(ranks, is_positive, settings.cutoffs, measures)
    metrics.update({f"coverage_at_{k}": coverage(listed[place]) for place, k in enumerate(settings.cutoffs)})
    return Evaluation(metrics, ranks)
