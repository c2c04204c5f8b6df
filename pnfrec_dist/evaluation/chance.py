"""How often few users show a difference between two models where there is none.

U users, R resamples.
"""

import numpy as np

from pnfrec_dist.evaluation.bootstrap import resample_count

CHUNK_CELLS = 1 << 22


def chance_of_difference(values_U: np.ndarray, resamples: int = 0) -> float:
    """The share of resamples whose mean is at least as far from 0 as that of values_U; nan without users.

    values_U: model minus reference of a measure for each user. If the models are equally good, which of them is better
    for a user is chance. So each resample gives every value a random sign: a paired randomization test (Smucker, Allan
    and Carterette, CIKM 2007, section 3.3). resamples: 0 for bootstrap.resample_count().
    """
    if not len(values_U):
        return float("nan")
    resamples, rng = resamples or resample_count(len(values_U)), np.random.default_rng(0)
    size, rows, parts = abs(values_U.mean()), max(1, CHUNK_CELLS // len(values_U)), []
    for start in range(0, resamples, rows):
        flipped_RU = rng.integers(2, size=(min(rows, resamples - start), len(values_U)), dtype=np.int8)
        parts.append(values_U.mean() - 2 * (flipped_RU @ values_U) / len(values_U))
    slack = 1e-12  # a resample that gives the same mean counts, whatever the order of the sum
    return float((np.abs(np.concatenate(parts)) >= size - slack).mean())
