from pathlib import Path

import numpy as np

from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.baselines import popularity_scores
from pnfrec_dist.evaluation.holdout import evaluate
from pnfrec_dist.model.top_k import rank_items


def test_popularity_ranks_by_train_counts(prepared: Path) -> None:
    data = open_prepared(prepared)
    test = data.holdout("test")
    scores = popularity_scores(data.item_counts(), World())(test.part(np.array([0, 1])))
    assert scores.block(1, 13).shape == (2, 12)
    nothing = Ragged(np.zeros(len(test) + 1, dtype=np.int64), np.array([], dtype=np.int32))
    assert rank_items(scores, 3, nothing, np.array([0, 1])).items_BK.tolist() == [[12, 11, 10]] * 2


def test_popularity_counts_all_or_positive_train_interactions(prepared: Path) -> None:
    """Item i has i positive and 1 negative interactions, so its rank is 13 - i if no item is seen."""
    data = open_prepared(prepared)
    assert data.item_counts().tolist() == [0, *range(2, 14)]
    assert data.item_counts(positive_only=True).tolist() == [0, *range(1, 13)]
    test = data.holdout("test")
    scores = popularity_scores(data.item_counts(positive_only=True), World())
    ranks = evaluate(scores, test, 12, EvaluationSettings(), World()).target_rank
    for user, (target, rank) in enumerate(zip(test.target_item, ranks, strict=True)):
        seen = set(test.seen.values[test.seen.offsets[user] : test.seen.offsets[user + 1]].tolist())
        assert rank == 1 + sum(item not in seen for item in range(target + 1, 13))
