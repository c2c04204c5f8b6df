"""Rankings without a model: the most frequent items of train first, the same for all users."""

import numpy as np
import torch

from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import ScoreUsers
from pnfrec_dist.model.top_k import Scores

BASELINES = {"popularity": False, "popularity_positive": True}
"""Name -> whether only positive interactions are counted."""


def popularity_scores(item_counts: np.ndarray, world: World) -> ScoreUsers:
    """Scores each item by its count in train, the same for all users. item_counts: [num_items + 1]."""
    counts_V = torch.from_numpy(item_counts).double().to(world.device)

    def score(users: HoldoutData) -> Scores:
        return Scores(
            first=1,
            end=len(counts_V),
            block=lambda first, end: counts_V[first:end].repeat(len(users), 1),
            of_items=lambda ids_B: (counts_V[ids_B], torch.zeros_like(counts_V[ids_B])),
        )

    return score
