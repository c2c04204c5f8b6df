"""Data of ML-1M's shape, drawn from a seed: its licence forbids shipping the real one.

ML-1M's 5,999 training users have 87 positives and 63 negatives on average; with windows of 50 that makes 38 and 29
targets a user, and 52 % and 34 % of the windows are full. The drawn lists meet these to a few percent.
"""

import numpy as np

from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged

USERS, ITEMS = 5_999, 3_412


def ml1m_like(users: int = USERS, items: int = ITEMS) -> TrainData:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, users))
    positive = np.exp(4.0 + 0.98 * first).round().clip(2, 1500).astype(int)
    negative = np.exp(3.4 + 1.22 * (0.74 * first + 0.67 * second)).round().clip(0, 1500).astype(int)
    popularity = np.cumsum(rng.lognormal(0, 1.3, items))
    sides = []
    for lengths in (positive, negative):
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        drawn = np.searchsorted(popularity, rng.random(offsets[-1]) * popularity[-1])
        sides.append(Ragged(offsets, (drawn + 1).astype(np.int32)))
    return TrainData(*sides)
