"""The share of differences by chance beside the normal distribution and beside all possible signs."""

import itertools
import math

import numpy as np
import pytest

from pnfrec_dist.evaluation.bootstrap import paired_point_intervals
from pnfrec_dist.evaluation.chance import chance_of_difference


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_the_share_is_that_of_a_normal_mean(width: float) -> None:
    """With random signs, a mean of U values with quadratic mean s is beyond c s / sqrt(U) with probability
    erfc(c / sqrt 2)."""
    values = np.random.default_rng(1).normal(0.0, 2.0, 400)
    values += width * 2.0 / math.sqrt(400) - values.mean()
    width = abs(values.mean()) * math.sqrt(400) / math.sqrt((values**2).mean())
    assert chance_of_difference(values) == pytest.approx(math.erfc(width / math.sqrt(2)), abs=0.02)


def test_all_signs_of_few_users() -> None:
    values = np.array([0.5, 0.2, -0.1, 0.4, 0.0, 0.3])
    means = [np.mean(values * signs) for signs in itertools.product((1, -1), repeat=len(values))]
    share = float(np.mean([abs(mean) >= abs(values.mean()) - 1e-12 for mean in means]))
    assert chance_of_difference(values, 40_000) == pytest.approx(share, abs=0.01)
    assert chance_of_difference(-values, 40_000) == pytest.approx(share, abs=0.01)


def test_equal_models_always_show_as_much_and_no_users_show_nothing() -> None:
    assert chance_of_difference(np.zeros(5)) == 1
    assert math.isnan(chance_of_difference(np.zeros(0)))


def test_it_agrees_with_the_interval() -> None:
    """A share of 5 % where the 95 % interval ends at 0."""
    rng = np.random.default_rng(3)
    own, other = (rng.integers(1, 30, (1, 400)) for _ in range(2))
    liked, users = np.ones(400, dtype=bool), np.arange(400)
    gain = (np.where(own <= 10, 1 / np.log2(own + 1), 0) - np.where(other <= 10, 1 / np.log2(other + 1), 0))[0]
    found = paired_point_intervals(["ndcg_p_at_10"], own, other, liked, users)["ndcg_p_at_10"]
    half = (found.high - found.low) / 2
    assert chance_of_difference(gain - gain.mean() + half) == pytest.approx(0.05, abs=0.015)
