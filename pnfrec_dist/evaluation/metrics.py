"""Rank of the target -> HR, NDCG, MRR at k; apart for positive (p) and negative (n) targets, and delta = p - n."""

from collections.abc import Sequence

import numpy as np

MEASURES = ("hr", "ndcg", "mrr")
SELECTION_METRIC = "ndcg_p_at_10"
"""What early stopping, the choice of an epoch and of a model go by, on validation users."""
LOGGED_SELECTION = f"val/{SELECTION_METRIC}"
"""Its name among the metrics of an epoch."""
FLOORS = {"popularity": False, "popularity_positive": True}
"""Rankings without a model, by train interactions -> whether positive ones alone."""


def measure(name: str, target_rank: np.ndarray, k: int) -> np.ndarray:
    """HR@k, NDCG@k or MRR@k of single users whose one relevant item stands at 1-based `target_rank`."""
    hit = target_rank <= k
    if name == "hr":
        return hit.astype(float)
    if name == "ndcg":
        return hit / np.log2(target_rank + 1.0)
    assert name == "mrr"
    return hit / target_rank.astype(float)


def summarize(target_rank: np.ndarray, is_positive: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
    """Means over users: {"hr_p_at_10": ..., "hr_n_at_10": ..., "hr_delta_at_10": ...} for every measure and cut-off.

    A group without users gives no entry, and then there is no delta.
    """
    result: dict[str, float] = {}
    for k in cutoffs:
        for name in MEASURES:
            values = measure(name, target_rank, k)
            for group, chosen in (("p", is_positive), ("n", ~is_positive)):
                if chosen.any():
                    result[f"{name}_{group}_at_{k}"] = float(values[chosen].mean())
            if is_positive.any() and not is_positive.all():
                result[f"{name}_delta_at_{k}"] = result[f"{name}_p_at_{k}"] - result[f"{name}_n_at_{k}"]
    return result


def coverage(recommended: np.ndarray) -> float:
    """Share of the catalog that stands in at least one list. recommended: bool [num_items]."""
    return float(recommended.mean())
