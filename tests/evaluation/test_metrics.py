import math

import numpy as np
import pytest

from pnfrec_dist.evaluation.metrics import coverage, measures_of, summarize


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
