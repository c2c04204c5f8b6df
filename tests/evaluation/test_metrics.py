import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.metrics import coverage, hit_rate, measures_of, require_measures, summarize

WRONG: dict[str, tuple[Any, str]] = {
    "of_one_number": (lambda target_rank: target_rank, "which fails on target ranks .*TypeError.*; correct it"),
    "scalar": (lambda target_rank, k: 1.0, "must be a function that returns an array"),
    "mean": (lambda target_rank, k: (target_rank <= k).mean(), "must be a function that returns an array"),
    "as_a_list": (lambda target_rank, k: list(target_rank), "must be a function that returns an array"),
    "text": (lambda target_rank, k: target_rank.astype(str), "must be a function that returns an array"),
    "flat": (lambda target_rank, k: target_rank.flatten(), "must be a function that returns an array"),
    "changing": (lambda target_rank, k: np.multiply(target_rank, 2, out=target_rank), "read-only"),
    "small_k": (lambda target_rank, k: target_rank / {10: 1.0, 20: 2.0}[k], "KeyError: 5"),
    "number": (3, "must be a function of target ranks and k"),
}


class Least:
    """A callable object; it has no __name__."""

    def __call__(self, target_rank: np.ndarray, k: int) -> np.ndarray:
        return (target_rank <= k).astype(float)


globals().update({f"wrong_{name}": measure for name, (measure, _) in WRONG.items()})
partial: Callable[..., Any] = functools.partial(hit_rate)
least, hr = Least(), hit_rate


def own(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_measure_is_said_before_training(name: str) -> None:
    settings = EvaluationSettings(measures=("ndcg", own(f"wrong_{name}")))
    with pytest.raises(
        InputError, match=rf"^evaluation\.measures is '{own('wrong_' + name)}'.*{WRONG[name][1]}"
    ) as error:
        require_measures(settings)
    assert "\n" not in str(error.value)


def test_measures_are_named_by_their_last_part() -> None:
    names = ("ndcg", own("partial"), own("least"), own("Least.__call__"), own("hr"))
    assert list(measures_of(names)) == ["ndcg", "partial", "least", "__call__", "hr"]
    require_measures(EvaluationSettings(measures=("hr", "ndcg", "mrr", own("partial"), own("least"))))


@pytest.mark.parametrize(
    ("names", "repeated"),
    [(("hr", own("hr")), "hr"), ((own("least"), "elsewhere:least"), "least"), (("hr", "hr"), "hr")],
)
def test_two_measures_of_one_name_are_said(names: tuple[str, ...], repeated: str) -> None:
    with pytest.raises(InputError, match=f"^evaluation.measures: more than one value is named '{repeated}' in the log"):
        measures_of(names)


def test_closed_forms() -> None:
    ranks = np.array([1, 2, 3, 10, 11])
    result = summarize(ranks, np.array([True, True, True, True, False]), [1, 10], measures_of())
    assert result["hr_p_at_1"] == 0.25
    assert result["hr_p_at_10"] == 1.0
    assert result["hr_n_at_10"] == 0.0
    assert result["hr_delta_at_10"] == 1.0
    assert result["mrr_p_at_10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 10) / 4, abs=1e-15)
    ndcg = (1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(11)) / 4
    assert result["ndcg_p_at_10"] == pytest.approx(ndcg, abs=1e-15)
    assert result["ndcg_n_at_10"] == 0.0


def test_a_random_order_has_the_expected_means() -> None:
    """Targets at every rank 1..N once: HR@k = k / N, MRR@k = H_k / N."""
    ranks = np.arange(1, 101)
    result = summarize(ranks, np.ones(100, dtype=bool), [10], measures_of())
    assert result["hr_p_at_10"] == pytest.approx(0.1)
    assert result["mrr_p_at_10"] == pytest.approx(sum(1 / r for r in range(1, 11)) / 100)


def test_a_missing_group_gives_no_entry_and_no_delta() -> None:
    only_p = summarize(np.array([1]), np.array([True]), [10], measures_of())
    assert set(only_p) == {"hr_p_at_10", "ndcg_p_at_10", "mrr_p_at_10"}
    only_n = summarize(np.array([1]), np.array([False]), [10], measures_of())
    assert set(only_n) == {"hr_n_at_10", "ndcg_n_at_10", "mrr_n_at_10"}


def test_coverage() -> None:
    assert coverage(np.array([True, False, False, True])) == 0.5
