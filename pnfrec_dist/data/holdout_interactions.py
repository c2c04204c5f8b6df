"""Each holdout user's interactions from T on, with the lists before them: what an evaluation on many points needs."""

from dataclasses import dataclass

from pnfrec_dist.data.ragged import Ragged


@dataclass(frozen=True)
class HoldoutInteractions:
    """The users of a split, in the order of PreparedData.holdout(); lists are oldest first."""

    before_items: Ragged
    """the newest max_history interactions before the first of `items`"""
    before_is_positive: Ragged
    before_positive: Ragged
    """the newest max_history likes before it"""
    before_negative: Ragged
    before_seen: Ragged
    """all distinct items before it, ascending"""
    items: Ragged
    """the newest max_history interactions at or after T; the last one is the target"""
    is_positive: Ragged
    replaces: bool
    """whether an interaction takes the place of the user's earlier one with the item (clean.duplicates: keep_last)"""
    max_history: int
