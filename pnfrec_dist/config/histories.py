"""What the main encoder reads of a user: the choices of encoder.history.

data/collate.py makes the training windows from them.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

History = Literal["positive", "all", "signed", "both"]


@dataclass(frozen=True)
class HistoryKind:
    """One choice of encoder.history."""

    name: History
    column: str
    """column of the prepared data with the lists that the main encoder reads"""
    title: str
    """for plots"""
    holds_negatives: bool
    """likes and dislikes are in one sequence: it is twice as long, and there is no negative encoder. Its values are
    item ids with signs (data/ragged.py: signed)"""
    reads_signs: bool = False
    """the encoder is told which items are disliked, and its targets are likes alone"""
    reads_likes_too: bool = False
    """a further encoder reads the likes among them; each encoder has half of the item vectors for itself"""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the prepared data from which the history is made."""
        return (self.column, "is_positive") if self.holds_negatives else (self.column,)

    @property
    def predicts_dislikes(self) -> bool:
        """Next dislikes can be targets: of a negative encoder, or of a second head of an encoder that reads signs."""
        return self.reads_signs or not self.holds_negatives

    def windows(self, max_length: int) -> int:
        """The longest input. max_length: encoder.max_length, which counts positions per side."""
        return 2 * max_length if self.holds_negatives else max_length

    def choose(self, *, positive_items: T, negative_items: T, items: T) -> T:
        """The one of a user's lists that the main encoder reads; the parameters are named after the columns."""
        return {"positive_items": positive_items, "negative_items": negative_items, "items": items}[self.column]


HISTORIES: dict[History, HistoryKind] = {
    "positive": HistoryKind("positive", "positive_items", "likes", holds_negatives=False),
    "all": HistoryKind("all", "items", "all interactions", holds_negatives=True),
    "signed": HistoryKind("signed", "items", "likes (signed history)", holds_negatives=True, reads_signs=True),
    "both": HistoryKind(
        "both",
        "items",
        "likes (signed history, beside likes)",
        holds_negatives=True,
        reads_signs=True,
        reads_likes_too=True,
    ),
}
