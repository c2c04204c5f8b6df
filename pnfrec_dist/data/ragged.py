"""Lists of different lengths as two arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pnfrec_dist.data.schema import PAD_ID


@dataclass(frozen=True)
class Ragged:
    """Row i is values[offsets[i]:offsets[i + 1]]; offsets has one entry more than the number of rows."""

    offsets: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray], dtype: type = np.int64) -> "Ragged":
        """From one list per row."""
        offsets = np.concatenate([[0], np.cumsum([len(values) for values in rows], dtype=np.int64)])
        parts = [np.asarray(values, dtype=dtype) for values in rows]
        return cls(offsets, np.concatenate([np.empty(0, dtype=dtype), *parts]))

    def row(self, number: int) -> np.ndarray:
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def take(self, rows: np.ndarray) -> "Ragged":
        """These rows, in this order."""
        return Ragged(np.concatenate([[0], np.cumsum(self.lengths[rows])]), self.pairs(rows)[1])

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `rows`, value) of each value of these rows, row by row."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        return np.repeat(np.arange(len(rows)), lengths), self.values[places]

    def newest(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The last `count` values of each row: (ids [rows, longest] right-padded with PAD_ID, lengths [rows]).

        Position 0 is the oldest value of the window; `longest` is at least 1.
        """
        ends = self.offsets[rows + 1]
        lengths = np.minimum(ends - self.offsets[rows], count)
        place = np.arange(max(int(lengths.max(initial=0)), 1))
        taken = (ends - lengths)[:, None] + place
        real = place < lengths[:, None]
        ids = np.full(taken.shape, PAD_ID, dtype=np.int64)
        ids[real] = self.values[taken[real]]
        return ids, lengths


def signed(items: Ragged, is_positive: Ragged) -> Ragged:
    """A history of likes and dislikes as one list: the item id of a like, minus the item id of a dislike."""
    return Ragged(items.offsets, np.where(is_positive.values, items.values, -items.values))
