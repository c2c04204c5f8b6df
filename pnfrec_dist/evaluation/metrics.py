"""Target rank -> measures at k (HR, NDCG, MRR, ...), separately for positive (p) and negative (n) targets, and delta,
which is p - n.

A measure is a function (1-based target ranks of any shape, k) -> values of the same shape. evaluation.measures chooses
the measures by their names in config/registry.py.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pnfrec_dist.config.registry import MEASURES
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.errors import require

Measure = Callable[[np.ndarray, int], np.ndarray]

HEADLINE_CUTOFF = 10
"""k of the headline metrics"""
SELECTION_METRIC = f"ndcg_p_at_{HEADLINE_CUTOFF}"
"""The metric, on validation users, for early stopping and for choosing epochs and models."""
LOGGED_SELECTION = f"val/{SELECTION_METRIC}"
"""Its name in the metrics of an epoch."""
POINTS = "points_"
"""Start of the names of metrics over many points."""
HEADLINE_MEASURES = ("hr", "ndcg")
"""The measures in short tables."""
HEADLINE_METRICS = tuple(
    f"{name}_{group}_at_{HEADLINE_CUTOFF}" for group in ("p", "delta") for name in HEADLINE_MEASURES
)
"""The columns of the paper's Table 2."""


def hit_rate(target_rank: np.ndarray, k: int) -> np.ndarray:
    """1 if the target rank is at most k, else 0."""
    return (target_rank <= k).astype(float)


def ndcg(target_rank: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(rank + 1) if rank <= k, else 0: NDCG with one relevant item."""
    return (target_rank <= k) / np.log2(target_rank + 1.0)


def mrr(target_rank: np.ndarray, k: int) -> np.ndarray:
    """1 / rank if rank <= k, else 0."""
    return (target_rank <= k) / target_rank.astype(float)


def measures_of(names: Sequence[str] = EvaluationSettings.measures) -> dict[str, Measure]:
    """evaluation.measures -> {start of the metric names: function}; for module:object, that start is the last part.

    Raises InputError if one is not a function, and for two of the same start.
    """
    starts = [re.split("[:.]", name)[-1] for name in names]
    MEASURES.require_names(starts)
    return {start: MEASURES.load(name) for start, name in zip(starts, names, strict=True)}


def require_measures(settings: EvaluationSettings) -> None:
    """Raises InputError for a measure that fails on some target ranks, or gives anything but a number for each."""
    for name, measure in zip(settings.measures, measures_of(settings.measures).values(), strict=True):
        for k, shape in itertools.product(settings.cutoffs, ((6,), (2, 3))):
            ranks = np.array([1, 2, 9, 10, 11, 12345]).reshape(shape)
            ranks.flags.writeable = False  # other measures read them too
            with MEASURES.own_code(name, "fails on target ranks"):
                values = measure(ranks, k)
            fits = isinstance(values, np.ndarray) and values.shape == shape and values.dtype.kind in "bif"
            require(
                fits, MEASURES.setting, name, "a function that returns an array of numbers, one for each target rank"
            )


def metric_parts(metric: str) -> tuple[str, str, int] | None:
    """ "ndcg_delta_at_10" -> ("ndcg", "delta", 10); None for other metrics, such as coverage_at_10."""
    found = re.fullmatch(r"(.+)_(p|n|delta)_at_(\d+)", metric)
    return (found[1], found[2], int(found[3])) if found else None


def of_points(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of many points under their own names. Coverage is left out: it grows with the number of lists."""
    return {f"{POINTS}{name}": value for name, value in metrics.items() if metric_parts(name)}


def metric_title(metric: str) -> str:
    """ "ndcg_delta_at_10" -> "dNDCG@10", "coverage_at_10" -> "Coverage@10"; of many points: "dNDCG@10 (points)"."""
    if metric.startswith(POINTS):
        return f"{metric_title(metric.removeprefix(POINTS))} (points)"
    parts = metric_parts(metric)
    if parts is None:
        name, _, k = metric.partition("_at_")
        return f"{name.capitalize()}@{k}"
    name, group, k = parts
    return f"d{name.upper()}@{k}" if group == "delta" else f"{name.upper()}_{group}@{k}"


def summarize(
    target_rank: np.ndarray, is_positive: np.ndarray, cutoffs: Sequence[int], measures: Mapping[str, Measure]
) -> dict[str, float]:
    """Means over users: {"hr_p_at_10": ..., "hr_n_at_10": ..., "hr_delta_at_10": ...} for every measure and cut-off.

    A group without users has no metrics, and then there is no delta.
    """
    result: dict[str, float] = {}
    for k in cutoffs:
        for name, measure in measures.items():
            values = measure(target_rank, k)
            for group, chosen in (("p", is_positive), ("n", ~is_positive)):
                if chosen.any():
                    result[f"{name}_{group}_at_{k}"] = float(values[chosen].mean())
            if is_positive.any() and not is_positive.all():
                result[f"{name}_delta_at_{k}"] = result[f"{name}_p_at_{k}"] - result[f"{name}_n_at_{k}"]
    return result


def coverage(recommended: np.ndarray) -> float:
    """Share of the catalog that is in at least one list. recommended: bool [num_items]."""
    return float(recommended.mean())
