"""Spread and paired bootstrap against their definitions, in plain Python."""

import math
import random
import statistics

import numpy as np
import pytest

from pnfrec_dist.evaluation.bootstrap import paired_intervals, paired_point_intervals, spread
from pnfrec_dist.evaluation.metrics import measures_of, summarize

METRICS = [f"{name}_{group}_at_{k}" for name in ("hr", "ndcg") for group in ("p", "n", "delta") for k in (5, 10)]


def ranks(seeds: int, users: int, seed: int, better: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40 // better, (seeds, users))


def test_spread_is_the_samples() -> None:
    found = spread([0.1, 0.4, 0.2])
    assert found.mean == pytest.approx(statistics.mean([0.1, 0.4, 0.2]))
    assert found.sd == pytest.approx(statistics.stdev([0.1, 0.4, 0.2]))
    assert math.isnan(spread([0.3]).sd)


def test_differences_are_those_of_the_seeds_means() -> None:
    is_positive = np.arange(50) % 3 != 0
    ours, theirs = ranks(3, 50, 1, better=2), ranks(2, 50, 2)
    found = paired_intervals(METRICS, ours, theirs, is_positive, resamples=20)
    for metric in METRICS:
        means = [
            statistics.mean(summarize(of_seed, is_positive, (5, 10), measures_of())[metric] for of_seed in seeds)
            for seeds in (ours, theirs)
        ]
        assert found[metric].difference == pytest.approx(means[0] - means[1], abs=1e-12)
        assert found[metric].low <= found[metric].high


def slow_bootstrap(ours: np.ndarray, theirs: np.ndarray, is_positive: np.ndarray, k: int) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of the difference of dHR@k.

    Users are drawn separately for each kind of target, and the same users for both models.
    """
    source = random.Random(5)
    kinds = [np.flatnonzero(is_positive).tolist(), np.flatnonzero(~is_positive).tolist()]
    differences = []
    for _ in range(3000):
        by_kind = []
        for users in kinds:
            drawn = [source.choice(users) for _ in users]
            hits = [
                statistics.mean(int(seeds[s, u] <= k) for s in range(len(seeds)))
                for seeds in (ours, theirs)
                for u in drawn
            ]
            by_kind.append(sum(hits[: len(drawn)]) / len(drawn) - sum(hits[len(drawn) :]) / len(drawn))
        differences.append(by_kind[0] - by_kind[1])
    differences.sort()
    return differences[75], differences[2925]


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    is_positive = np.arange(40) % 3 != 0
    ours, theirs = ranks(2, 40, 1, better=2), ranks(2, 40, 2)
    found = paired_intervals(["hr_delta_at_10"], ours, theirs, is_positive)["hr_delta_at_10"]
    low, high = slow_bootstrap(ours, theirs, is_positive, 10)
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)
    assert 0.2 < found.high - found.low < 0.9


def test_the_interval_narrows_as_for_normal_means_and_covers() -> None:
    """With 4,000 users, the interval is 1.96 standard errors of the paired differences to each side."""
    users = 4000
    is_positive = np.ones(users, dtype=bool)
    theirs = ranks(1, users, 3)
    ours = np.where(np.random.default_rng(4).random((1, users)) < 0.05, 1, theirs)  # 5 % of the users get rank 1
    found = paired_intervals(["hr_p_at_10"], ours, theirs, is_positive)["hr_p_at_10"]
    gains = (ours[0] <= 10).astype(float) - (theirs[0] <= 10)
    error = gains.std() / math.sqrt(users)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.15 * error)
    assert found.excludes_zero
    same = paired_intervals(["hr_p_at_10"], theirs, theirs, is_positive)["hr_p_at_10"]
    assert (same.low, same.high) == (0, 0) and not same.excludes_zero


def test_a_group_without_users_has_no_interval() -> None:
    found = paired_intervals(METRICS, ranks(1, 9, 0), ranks(1, 9, 1), np.ones(9, dtype=bool))
    assert found.keys() == {metric for metric in METRICS if "_p_" in metric}


def test_a_measure_that_is_not_given_has_no_interval() -> None:
    is_positive = np.arange(9) % 2 == 0
    for names in (("ndcg",), ("mrr",)):
        found = paired_intervals(METRICS, ranks(1, 9, 0), ranks(1, 9, 1), is_positive, measures=measures_of(names))
        assert found.keys() == {metric for metric in METRICS if metric.startswith(names)}


def test_equal_draws_give_equal_intervals_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    is_positive = np.arange(30) % 2 == 0
    ours, theirs = ranks(2, 30, 1), ranks(2, 30, 2)
    whole = paired_intervals(METRICS, ours, theirs, is_positive, resamples=300)
    assert whole == paired_intervals(METRICS, ours, theirs, is_positive, resamples=300)
    monkeypatch.setattr("pnfrec_dist.evaluation.bootstrap.CHUNK_CELLS", 1000)
    assert paired_intervals(METRICS, ours, theirs, is_positive, resamples=300) == whole


def test_points_of_one_user_are_drawn_together() -> None:
    """Copies of a user's point say nothing new: the interval is that of one point of each user."""
    users, copies = 600, 7
    likes = np.arange(users) % 3 != 0
    ours, theirs = ranks(2, users, 1, better=2), ranks(2, users, 2)
    many_ours, many_theirs = (np.repeat(seeds, copies, axis=1) for seeds in (ours, theirs))
    user_P = np.repeat(np.arange(users), copies)
    metrics = ["hr_p_at_10", "hr_n_at_10", "hr_delta_at_10"]
    many = paired_point_intervals(metrics, many_ours, many_theirs, np.repeat(likes, copies), user_P)
    single = paired_point_intervals(metrics, ours, theirs, likes, np.arange(users))
    by_group = paired_intervals(metrics, ours, theirs, likes)
    for metric in metrics:
        assert many[metric].difference == pytest.approx(by_group[metric].difference, abs=1e-12)
        width = by_group[metric].high - by_group[metric].low
        for found in (many[metric], single[metric]):
            assert found.low == pytest.approx(by_group[metric].low, abs=0.1 * width)
            assert found.high == pytest.approx(by_group[metric].high, abs=0.1 * width)


def test_intervals_of_points_are_those_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(8)
    user_P = np.sort(rng.integers(0, 30, 200))
    likes_P = rng.random(200) < 0.6
    ours, theirs = ranks(2, 200, 1, better=2), ranks(2, 200, 2)
    found = paired_point_intervals(["hr_delta_at_10"], ours, theirs, likes_P, user_P)["hr_delta_at_10"]
    gains = (ours <= 10).mean(0) - (theirs <= 10).mean(0)
    source, differences = random.Random(3), []
    of_user = {user: np.flatnonzero(user_P == user) for user in set(user_P.tolist())}
    for _ in range(3000):
        drawn = np.concatenate([of_user[user] for user in source.choices(list(of_user), k=len(of_user))])
        differences.append(gains[drawn][likes_P[drawn]].mean() - gains[drawn][~likes_P[drawn]].mean())
    differences.sort()
    assert found.difference == pytest.approx(gains[likes_P].mean() - gains[~likes_P].mean())
    assert found.low == pytest.approx(differences[75], abs=0.015)
    assert found.high == pytest.approx(differences[2925], abs=0.015)
