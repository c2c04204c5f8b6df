"""The share of differences by chance beside the normal distribution."""

import math

import numpy as np
import pytest

from pnfrec_dist.evaluation.chance import chance_of_difference


def test_the_share_is_that_of_a_normal_mean() -> None:
    """One point a user: a mean of U values with SD s is beyond c s / sqrt(U) with probability erfc(c / sqrt 2).

    The mean of the values is taken away, so a true difference does not count.
    """
    values = np.random.default_rng(1).normal(0.3, 2.0, 400)
    likes, users = np.ones(400, dtype=bool), np.arange(400)
    for width in (0.5, 1.0, 2.0):
        size = width * values.std() / math.sqrt(400)
        assert chance_of_difference(size, values, likes, users) == pytest.approx(
            math.erfc(width / math.sqrt(2)), abs=0.02
        )
    assert chance_of_difference(0.0, values, likes, users) == 1


def test_one_point_of_each_user_is_drawn_and_dislikes_are_left_out() -> None:
    """Half of each user's points are dislikes: an evaluation has half as many values, of both points of a user."""
    users = np.repeat(np.arange(500), 4)
    likes = np.tile([True, False, True, False], 500)
    values = np.where(likes, np.tile([1.0, 9.0, -1.0, 9.0], 500), np.nan)
    error = 1 / math.sqrt(250)
    assert chance_of_difference(error, np.nan_to_num(values), likes, users) == pytest.approx(0.317, abs=0.03)


def test_without_a_like_there_is_no_share() -> None:
    assert math.isnan(chance_of_difference(0.1, np.zeros(4), np.zeros(4, dtype=bool), np.arange(4)))
