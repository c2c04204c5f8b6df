"""Evaluates a trained model on points of a data set whose catalog is not that of the model.

P points.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.points import Points, required_points
from pnfrec_dist.data.prepared import HoldoutData, PreparedData
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import evaluate
from pnfrec_dist.evaluation.metrics import measures_of, summarize
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.list_maker import known_items, model_items
from pnfrec_dist.inference.recommender import Recommender


@dataclass(frozen=True)
class PointRanks:
    """How a model ranks the targets of some points, in its own catalog."""

    points: Points
    target_rank: np.ndarray
    """[P]; of a target that the model does not know, behind its catalog and all cut-offs"""
    num_unknown: int
    """targets that the model does not know"""
    metrics: dict[str, float]


def rank_points(trained: Exported, data: PreparedData, split: str) -> PointRanks:
    """Items are matched by raw id. Items of a history that the model does not know are left out of it.

    The points are the same for all models. Raises InputError for data without points.
    """
    evaluation = EvaluationSettings()
    points = required_points(data, split, trained.settings.encoder.history, evaluation)
    item_of = model_items(data.raw_item_ids(), pa.array(trained.raw_ids, pa.string()))
    whole = points.part(np.arange(len(points)))
    assert whole.negative is not None
    history, seen, negative = (known_items(lists, item_of) for lists in (whole.history, whole.seen, whole.negative))
    targets = whole.target_item if item_of is None else item_of[whole.target_item]
    is_known = targets != PAD_ID
    mapped = HoldoutData(history, seen, targets, whole.target_is_positive, negative).part(np.flatnonzero(is_known))
    recommender = Recommender(trained.model.eval(), trained.num_positive_V)
    scores = recommender.of_holdout(trained.gamma(None))
    found = evaluate(scores, mapped, len(trained.raw_ids), evaluation, World())
    ranks = np.full(len(points), len(trained.raw_ids) + max(evaluation.cutoffs) + 1, dtype=np.int64)
    ranks[is_known] = found.target_rank
    is_positive, measures = points.target_is_positive, measures_of(evaluation.measures)
    metrics = summarize(ranks, is_positive, evaluation.cutoffs, measures)
    return PointRanks(points, ranks, int((~is_known).sum()), metrics)
