"""Comparison of models: means over seeds, differences with intervals over test users.

S seeds, U test users, P points, C compared values, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pnfrec_dist.evaluation.metrics import Measure, measures_of, metric_parts
from pnfrec_dist.files.text import signed

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
    def text(self) -> str:
        """+.0106 [-.0020, +.0230]"""
        return f"{signed(self.difference)} [{signed(self.low)}, {signed(self.high)}]"

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
    metrics: Sequence[str],
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
    asked = _Asked.of(metrics, measures)
    if not asked.parts:
        return {}
    resamples = resamples or resample_count(len(is_positive_U))
    values_UC = asked.differences(model_SU, reference_SU)
    rng = np.random.default_rng(0)
    found, drawn = {}, {}
    for group, chosen in (("p", is_positive_U), ("n", ~is_positive_U)):
        if chosen.any():
            found[group], drawn[group] = values_UC[chosen].mean(0), _resampled(values_UC[chosen], resamples, rng)
    return asked.intervals(found, drawn)


def paired_point_intervals(
    metrics: Sequence[str],
    model_SP: np.ndarray,
    reference_SP: np.ndarray,
    is_positive_P: np.ndarray,
    user_P: np.ndarray,
    *,
    measures: Mapping[str, Measure] | None = None,
    resamples: int = 0,
) -> dict[str, Interval]:
    """As paired_intervals, for target ranks of many points, P in all, with metrics as means over points.

    user_P: each point's user, from 0. Users are drawn, each with all its points, for both groups at once: points of one
    user are not independent.
    """
    asked = _Asked.of(metrics, measures)
    if not asked.parts:
        return {}
    users, user_P = np.unique(user_P, return_inverse=True)
    values_PC = asked.differences(model_SP, reference_SP)
    sums, counts = {}, {}
    for group, chosen in (("p", is_positive_P), ("n", ~is_positive_P)):
        if chosen.any():
            counts[group] = np.bincount(user_P[chosen], minlength=len(users)).astype(float)
            sums[group] = np.stack(
                [np.bincount(user_P[chosen], column_P, len(users)) for column_P in values_PC[chosen].T], axis=1
            )
    found = {group: sums[group].sum(0) / counts[group].sum() for group in sums}
    stacked_UC = np.concatenate([np.column_stack([sums[group], counts[group]]) for group in sums], axis=1)
    drawn_RC = _resampled(stacked_UC, resamples or resample_count(len(users)), np.random.default_rng(0))
    parts = np.split(drawn_RC, len(sums), axis=1)
    with np.errstate(invalid="ignore"):  # a resample without a point of a group, which the quantiles leave out
        drawn = {group: part_RC[:, :-1] / part_RC[:, -1:] for group, part_RC in zip(sums, parts, strict=True)}
    return asked.intervals(found, drawn)


@dataclass(frozen=True)
class _Asked:
    """The metrics that are means over users or points, and the columns (measure, k) that they need."""

    parts: dict[str, tuple[str, str, int]]
    columns: list[tuple[str, int]]
    measures: Mapping[str, Measure]

    @classmethod
    def of(cls, metrics: Sequence[str], measures: Mapping[str, Measure] | None) -> "_Asked":
        measures = measures_of() if measures is None else measures
        parts = {metric: found for metric in metrics if (found := metric_parts(metric)) and found[0] in measures}
        return cls(parts, list(dict.fromkeys((name, k) for name, _, k in parts.values())), measures)

    def differences(self, model_SU: np.ndarray, reference_SU: np.ndarray) -> np.ndarray:
        """The columns of model minus reference, [U, C], as means over seeds."""
        columns = [
            self.measures[name](model_SU, k).mean(0) - self.measures[name](reference_SU, k).mean(0)
            for name, k in self.columns
        ]
        return np.stack(columns, axis=1)

    def intervals(self, found: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> dict[str, Interval]:
        """found, drawn: group -> differences [C], and those of each resample [R, C]."""
        if len(found) == 2:
            found["delta"], drawn["delta"] = found["p"] - found["n"], drawn["p"] - drawn["n"]
        result = {}
        for metric, (name, group, k) in self.parts.items():
            if group in found:
                column = self.columns.index((name, k))
                low, high = np.nanquantile(drawn[group][:, column], [0.025, 0.975])
                result[metric] = Interval(float(found[group][column]), float(low), float(high))
        return result


def _resampled(values_UC: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means over U users drawn with replacement, [R, C]; values_UC: C values of each user."""
    users = len(values_UC)
    parts = np.array_split(np.arange(resamples), max(1, resamples * users // CHUNK_CELLS))
    shares = np.full(users, 1 / users)
    return np.concatenate([rng.multinomial(users, shares, size=len(part)) @ values_UC / users for part in parts])
