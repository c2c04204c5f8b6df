import numpy as np
import pytest

from pnfrec_dist.config.settings import SampledSettings
from pnfrec_dist.data.item_sampler import ItemSampler

COUNTS = np.array([0, 8, 1, 4, 0, 7])
"""Items 1..5; item 4 has no train interaction."""


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_draws_follow_the_distribution_and_the_expected_counts_are_right(distribution: str) -> None:
    settings = SampledSettings(num_items=200_000, distribution=distribution)  # type: ignore[arg-type]
    draw = ItemSampler(settings, COUNTS).draw(1, 2, 3)
    share = COUNTS / COUNTS.sum() if distribution == "popularity" else np.array([0, 1, 1, 1, 1, 1]) / 5
    assert draw.drawn.sum() == 200_000
    assert draw.items.tolist() == np.flatnonzero(share).tolist(), "padding is never drawn"
    np.testing.assert_allclose(draw.drawn / 200_000, share[draw.items], atol=0.005)
    np.testing.assert_allclose(np.exp(draw.log_expected) * draw.drawn, 200_000 * share[draw.items], rtol=1e-5)


def test_the_sum_over_items_is_estimated_without_bias() -> None:
    """The mean of sum exp(s_j) / expected_j, over 4,000 draws of 6 items, is the sum over the catalog."""
    value = np.exp(np.array([0.0, 0.3, -1.0, 2.0, 0.0, 1.0]))
    sampler = ItemSampler(SampledSettings(num_items=6, distribution="popularity"), COUNTS)
    draws = [sampler.draw(0, 0, step) for step in range(4_000)]
    estimates = [(value[d.items] / np.exp(d.log_expected)).sum() for d in draws]
    expected = value[COUNTS > 0].sum()
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - expected) < 4 * error < 0.05 * expected


def test_a_draw_depends_on_seed_epoch_and_step_alone() -> None:
    sampler = ItemSampler(SampledSettings(num_items=50), np.ones(10_001))
    first, again = sampler.draw(1, 2, 3), sampler.draw(1, 2, 3)
    assert np.array_equal(first.items, again.items)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(first.items, sampler.draw(*other).items)
