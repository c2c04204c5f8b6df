"""Each holdout user's interactions from T on, with the lists before them: what an evaluation on many points needs."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pnfrec_dist.data.ragged import Ragged, signed


@dataclass(frozen=True)
class HoldoutInteractions:
    """The users of a split, in the order of PreparedData.holdout(); lists are oldest first."""

    before_items: Ragged
    """before the first of `items`: the newest max_history interactions that none of `items` replaces, and those among
    them that one replaces, so that at each point the newest max_history of what is left are there"""
    before_is_positive: Ragged
    before_positive: Ragged
    """the same of the likes"""
    before_negative: Ragged
    """the same of the dislikes"""
    before_seen: Ragged
    """all distinct items before it, ascending"""
    items: Ragged
    """the newest max_history interactions at or after T; the last one is the target"""
    is_positive: Ragged
    timestamps: Ragged
    """ascending"""
    replaces: bool
    """whether an interaction takes the place of the user's earlier one with the item (clean.duplicates: keep_last)"""
    max_history: int

    @cached_property
    def first_of_time(self) -> np.ndarray:
        """For each value of `items`: the place in its list of the first one with the same timestamp."""
        offsets, times = self.timestamps.offsets, self.timestamps.values
        is_first = np.append(True, np.diff(times) != 0)[: len(times)]
        is_first[offsets[:-1][self.timestamps.lengths > 0]] = True
        number = np.arange(len(times))
        firsts = np.maximum.accumulate(np.where(is_first, number, 0))
        return firsts - np.repeat(offsets[:-1], self.timestamps.lengths)

    @cached_property
    def before_signed(self) -> Ragged:
        """before_items with minus the id of a dislike."""
        return signed(self.before_items, self.before_is_positive)
