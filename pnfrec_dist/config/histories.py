"""What the main encoder reads of a user: decided by encoder.history, described here and nowhere else.

data/collate.py makes the windows of training from it.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

History = Literal["positive", "all"]


@dataclass(frozen=True)
class HistoryKind:
    """One choice of encoder.history."""

    name: History
    column: str
    """of the prepared data: the lists that the main encoder reads"""
    title: str
    """for people"""
    holds_negatives: bool
    """likes and dislikes in one sequence: it is twice as long, and there is no negative encoder beside it"""

    def windows(self, max_length: int) -> int:
        """The longest input, from encoder.max_length, which counts positions per side."""
        return 2 * max_length if self.holds_negatives else max_length

    def choose(self, *, positive_items: T, negative_items: T, items: T) -> T:
        """What the main encoder reads, of a user's lists; each is named after its column."""
        return {"positive_items": positive_items, "negative_items": negative_items, "items": items}[self.column]


HISTORIES: dict[History, HistoryKind] = {
    "positive": HistoryKind("positive", "positive_items", "likes", holds_negatives=False),
    "all": HistoryKind("all", "items", "all interactions", holds_negatives=True),
}
