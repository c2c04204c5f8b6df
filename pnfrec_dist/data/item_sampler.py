"""The items that a step samples from the catalog: a pure function of (seed, epoch, step), equal on every rank."""

from dataclasses import dataclass

import numpy as np

from pnfrec_dist.config.settings import SampledSettings

SAMPLER = 0x5A
"""Makes these draws independent of others with the same seed."""


@dataclass(frozen=True)
class Draw:
    """Items drawn with repetition, as distinct ascending ids, [K] each."""

    items: np.ndarray
    drawn: np.ndarray
    """how often each was drawn"""
    log_expected: np.ndarray
    """log of (expected number of draws / number of draws)"""


class ItemSampler:
    """Draws settings.num_items items, uniformly or in proportion to their train interactions."""

    def __init__(self, settings: SampledSettings, item_counts: np.ndarray) -> None:
        """item_counts: [num_items + 1], index 0 is padding and never drawn."""
        self.num_drawn = settings.num_items
        weight = item_counts.astype(np.float64) if settings.distribution == "popularity" else np.ones(len(item_counts))
        weight[0] = 0.0
        self.upto = np.cumsum(weight)
        self.share = weight / self.upto[-1]

    def draw(self, seed: int, epoch: int, step: int) -> Draw:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, step, SAMPLER])))
        at = random.random(self.num_drawn) * self.upto[-1]
        items, drawn = np.unique(np.searchsorted(self.upto, at, side="right"), return_counts=True)
        log_expected = np.log(self.num_drawn * self.share[items] / drawn)
        return Draw(items, drawn, log_expected.astype(np.float32))
