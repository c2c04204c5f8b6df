"""How often few users show a difference between two models where there is none.

P points, U users, R resamples.
"""

import numpy as np

from pnfrec_dist.evaluation.bootstrap import resample_count

CHUNK_CELLS = 1 << 22


def chance_of_difference(
    size: float, values_P: np.ndarray, is_positive_P: np.ndarray, user_P: np.ndarray, resamples: int = 0
) -> float:
    """The share of evaluations on one point of each user whose difference is at least `size` away from the mean of all
    such evaluations, in either direction.

    values_P: model minus reference of a measure at each point; user_P ascends. Each evaluation draws the users with
    replacement, and one point of each; its difference is the mean over the drawn points that are likes. nan if there
    are none. resamples: 0 for bootstrap.resample_count().
    """
    first_U = np.unique(user_P, return_index=True)[1]
    counts_U = np.diff(np.append(first_U, len(user_P)))
    resamples, rng = resamples or resample_count(len(first_U)), np.random.default_rng(0)
    parts = []
    rows = max(1, CHUNK_CELLS // max(len(first_U), 1))
    for start in range(0, resamples, rows):
        drawn_RU = rng.integers(len(first_U), size=(min(rows, resamples - start), len(first_U)))
        points_RU = first_U[drawn_RU] + rng.integers(counts_U[drawn_RU])
        likes_RU = is_positive_P[points_RU]
        with np.errstate(invalid="ignore"):
            parts.append((values_P[points_RU] * likes_RU).sum(1) / likes_RU.sum(1))
    means_R = np.concatenate(parts)
    means_R = means_R[~np.isnan(means_R)]
    return float((np.abs(means_R - means_R.mean()) >= size).mean()) if len(means_R) else float("nan")
