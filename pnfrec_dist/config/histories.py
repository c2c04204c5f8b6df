"""What the main encoder reads of a user: the choices of encoder.history.

data/collate.py makes the training windows from them.
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
    """column of the prepared data with the lists that the main encoder reads"""
    title: str
    """for plots"""
    holds_negatives: bool
    """likes and dislikes are in one sequence: it is twice as long, and there is no negative encoder"""

    def windows(self, max_length: int) -> int:
        """The longest input. max_length: encoder.max_length, which counts positions per side."""
        return 2 * max_length if self.holds_negatives else max_length

    def choose(self, *, positive_items: T, negative_items: T, items: T) -> T:
        """The one of a user's lists that the main encoder reads; the parameters are named after the columns."""
        return {"positive_items": positive_items, "negative_items": negative_items, "items": items}[self.column]


HISTORIES: dict[History, HistoryKind] = {
    "positive": HistoryKind("positive", "positive_items", "likes", holds_negatives=False),
    "all": HistoryKind("all", "items", "all interactions", holds_negatives=True),
}
