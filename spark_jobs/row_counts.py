"""What was counted while rows were read. Counts of several batches of files add up."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class RowCounts:
    """Numbers of rows."""

    reasons: dict[str, int]
    """why rows could not be read -> rows"""
    left_out: dict[str, int]
    """why rows are no interactions -> rows"""
    with_zeros: dict[str, int]
    """raw_user_id, raw_item_id -> rows whose id is spelled like 104.0"""
    likes: int
    dislikes: int
    labels: dict[str, int]
    """the commonest labels -> rows"""
    rules: dict[str, int]
    """"undone 0", "undone_by 0", ... -> rows that meet this condition of feedback"""

    def plus(self, other: "RowCounts") -> "RowCounts":
        """The counts of both."""
        sums = {
            name: dict(sorted((Counter(getattr(self, name)) + Counter(getattr(other, name))).items()))
            for name in ("reasons", "labels")
        }
        for name in ("left_out", "with_zeros", "rules"):  # their keys are the same in both
            own, more = getattr(self, name), getattr(other, name)
            sums[name] = {key: own[key] + more[key] for key in own}
        return RowCounts(**sums, likes=self.likes + other.likes, dislikes=self.dislikes + other.dislikes)
