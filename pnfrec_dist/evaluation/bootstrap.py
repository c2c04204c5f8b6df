"""Comparison of models: means over seeds, differences with intervals over test users.

S seeds, U test users, C compared values, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pnfrec_dist.evaluation.metrics import Measure, measures_of, metric_parts

MOST_RESAMPLES, LEAST_RESAMPLES, RESAMPLE_CELLS = 10_000, 1_000, 1 << 26
CHUNK_CELLS = 1 << 22


@dataclass(frozen=True)
class Spread:
    """Mean and SD over seeds."""

    mean: float
    sd: float
    """sample SD; nan for a single seed"""
    count: int = 0
    """seeds; 0 for a baseline, which has none"""


@dataclass(frozen=True)
class Interval:
    """The difference of two models, and its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def spread(values: list[float]) -> Spread:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Spread(float(np.mean(values)), sd, len(values))


def resample_count(users: int) -> int:
    """10,000; fewer for more than about 6,700 users, but at least 1,000."""
    return max(LEAST_RESAMPLES, min(MOST_RESAMPLES, RESAMPLE_CELLS // max(users, 1)))


def paired_intervals(
    metrics: list[str],
    model_SU: np.ndarray,
    reference_SU: np.ndarray,
    is_positive_U: np.ndarray,
    *,
    measures: Mapping[str, Measure] | None = None,
    resamples: int = 0,
) -> dict[str, Interval]:
    """Model minus reference in each metric, with 95 % percentile intervals by a paired bootstrap over test users (Efron
    and Tibshirani, 1993, section 13.3).

    model_SU, reference_SU: target ranks under each seed. A user's value is the mean over seeds. Users are drawn with
    replacement, separately for positive and for negative targets, and the same users for both models. The result has no
    metrics of a group without users, of a measure that is not in `measures`, or that is not a mean over users.
    measures: by name; default: those of the default settings. resamples: 0 for resample_count().
    """
    measures = measures_of() if measures is None else measures
    resamples = resamples or resample_count(len(is_positive_U))
    parts = {metric: found for metric in metrics if (found := metric_parts(metric)) and found[0] in measures}
    if not parts:
        return {}
    names = list(dict.fromkeys((name, k) for name, _, k in parts.values()))
    values_UC = np.stack(
        [measures[name](model_SU, k).mean(0) - measures[name](reference_SU, k).mean(0) for name, k in names], axis=1
    )
    rng = np.random.default_rng(0)
    found, drawn = {}, {}
    for group, chosen in (("p", is_positive_U), ("n", ~is_positive_U)):
        if chosen.any():
            found[group], drawn[group] = values_UC[chosen].mean(0), _resampled(values_UC[chosen], resamples, rng)
    if len(found) == 2:
        found["delta"], drawn["delta"] = found["p"] - found["n"], drawn["p"] - drawn["n"]
    result = {}
    for metric, (name, group, k) in parts.items():
        if group in found:
            column = names.index((name, k))
            low, high = np.quantile(drawn[group][:, column], [0.025, 0.975])
            result[metric] = Interval(float(found[group][column]), float(low), float(high))
    return result


def _resampled(values_UC: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means over U users drawn with replacement, [R, C]."""
    users = len(values_UC)
    parts = np.array_split(np.arange(resamples), max(1, resamples * users // CHUNK_CELLS))
    shares = np.full(users, 1 / users)
    return np.concatenate([rng.multinomial(users, shares, size=len(part)) @ values_UC / users for part in parts])
