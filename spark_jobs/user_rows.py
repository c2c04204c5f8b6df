"""Rows of users, user by user, from a stream of Arrow batches that may cut a user anywhere.

Each batch is sorted here by (timestamp, position in the source). If a user continues in the next batch, only the
entries that can still be part of a list are kept. So memory does not grow with the longest history (seen items are
complete, but bounded by the catalog).

Letters: R rows of a batch, U users in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
COUNTS = ("train_rows", "train_positives", "holdout_rows", "holdout_positives")
ROW = (
    "raw_user_id",
    "timestamp",
    "position",
    "item_id",
    "is_positive",
    "is_newest",
    "newest_timestamp",
    "newest_position",
)
"""The columns of a row; the last three are those of repeats.mark_newest()."""
Batches = Iterator[pa.RecordBatch]


@dataclass(frozen=True)
class Earlier:
    """A summary of the rows of a user that are no longer kept: the items of those with is_newest, and COUNTS."""

    items: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(COUNTS), np.int64))


class Columns(NamedTuple):
    """All columns of rows except the user."""

    times_R: np.ndarray
    positions_R: np.ndarray
    items_R: np.ndarray
    is_positive_R: np.ndarray
    is_newest_R: np.ndarray
    newest_times_R: np.ndarray
    newest_positions_R: np.ndarray

    def at(self, places: np.ndarray | slice) -> "Columns":
        """The rows at some places."""
        return Columns(*(values_R[places] for values_R in self))

    def replaced(self, split: int) -> np.ndarray:
        """Places of the rows before T (`split`) that a row from T on replaces."""
        return np.flatnonzero((self.times_R < split) & (self.newest_times_R >= split))


class Rows:
    """Rows of users, sorted for each user, and COUNTS by user. earlier: rows of the first user no longer kept."""

    def __init__(self, batch: pa.Table, split: int, earlier: Earlier) -> None:
        users = batch["raw_user_id"].combine_chunks()
        users = users.chunk(0) if isinstance(users, pa.ChunkedArray) else users
        is_new = np.concatenate([[True], pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)])
        self.starts_U = np.flatnonzero(is_new)
        self.ends_U = np.append(self.starts_U[1:], len(users))
        self.users_U = users.take(pa.array(self.starts_U))
        columns = Columns(*(batch[name].to_numpy() for name in ROW[1:]))
        self.columns = columns.at(_order(np.cumsum(is_new), columns.times_R, columns.positions_R))
        counted = _counted(self.columns, split)
        self.counts_U = [count_rows(counted_R, self.starts_U, self.ends_U) for counted_R in counted]
        for count_U, count in zip(self.counts_U, earlier.counts, strict=True):
            count_U[0] += count
        self.split, self.earlier, self.schema = split, earlier, batch.schema

    def hold_last_user(self, max_history: int) -> tuple[pa.Table, Earlier]:
        """Removes the last user; returns its rows that can still be part of a list, and a summary of its others."""
        counts = np.array([count_U[-1] for count_U in self.counts_U])
        self.counts_U = [count_U[:-1] for count_U in self.counts_U]
        earlier_items = self.earlier.items if len(self.users_U) == 1 else Earlier().items
        start, user = int(self.starts_U[-1]), self.users_U[-1]
        self.starts_U, self.ends_U, self.users_U = self.starts_U[:-1], self.ends_U[:-1], self.users_U[:-1]
        last, self.columns = self.columns.at(slice(start, None)), self.columns.at(slice(start))
        counted = _counted(last, self.split)
        in_train = _newest_of_each(counted[0], last.is_positive_R, max_history)
        # before the newest max_history interactions from T on, each list may need max_history more
        in_history = _newest_of_each(last.is_newest_R, last.is_positive_R, 2 * max_history)
        needed = np.unique(np.concatenate([in_train, in_history, self._last_replaced(last, max_history)]))
        held = pa.table([pa.repeat(user, len(needed)), *last.at(needed)], schema=self.schema)
        is_seen_R = last.is_newest_R.copy()
        is_seen_R[needed] = False
        items = np.union1d(earlier_items, last.items_R[is_seen_R]).astype(np.int32)
        return held, Earlier(items, counts - [np.count_nonzero(counted_R[needed]) for counted_R in counted])

    def _last_replaced(self, last: Columns, max_history: int) -> np.ndarray:
        """Places of the rows that the newest max_history interactions from T on may replace."""
        places = last.replaced(self.split)
        order = np.lexsort((last.newest_positions_R[places], last.newest_times_R[places]))
        return places[order[-max_history:]]


def _counted(columns: Columns, split: int) -> tuple[np.ndarray, ...]:
    """Which rows each of COUNTS counts."""
    is_train_R, is_positive_R = columns.times_R < split, columns.is_positive_R
    return is_train_R, is_train_R & is_positive_R, ~is_train_R, ~is_train_R & is_positive_R


def _order(users_R: np.ndarray, times_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
    """The order by (user, time, position) of rows that come user by user; users_R: 1, 2, ... in their order.

    np.lexsort of all three takes eight times as long as one stable sort of a combined key.
    """
    first = int(times_R.min())
    span = int(times_R.max()) - first + 1
    if (int(users_R[-1]) + 1) * span >= 2**63:
        return np.lexsort((positions_R, times_R, users_R))
    keys_R = users_R * span + (times_R - first)
    order_R = np.argsort(keys_R, kind="stable")
    equal = np.flatnonzero(np.diff(keys_R[order_R]) == 0)
    places = np.union1d(equal, equal + 1)
    tied = order_R[places]
    order_R[places] = tied[np.lexsort((positions_R[tied], keys_R[tied]))]
    return order_R


def whole_users(batches: Batches, max_history: int, split: int) -> Iterator[Rows]:
    """Cuts the stream between users. At most 10 * max_history rows of a user who may continue are kept."""
    held: pa.Table | None = None
    earlier = Earlier()
    for batch in batches:
        if batch.num_rows == 0:
            continue
        table = pa.Table.from_batches([batch])
        rows = Rows(pa.concat_tables([held, table]) if held is not None else table, split, earlier)
        held, earlier = rows.hold_last_user(max_history)
        if len(rows.users_U):
            yield rows
    if held is not None:
        yield Rows(held, split, earlier)


def _newest_of_each(chosen_R: np.ndarray, is_positive_R: np.ndarray, keep: int) -> np.ndarray:
    """Places of the newest `keep` chosen rows, and of the newest `keep` positives and negatives among them."""
    sides = (chosen_R, chosen_R & is_positive_R, chosen_R & ~is_positive_R)
    return np.concatenate([np.flatnonzero(side_R)[-keep:] for side_R in sides])


def count_rows(chosen_R: np.ndarray, starts_U: np.ndarray, ends_U: np.ndarray) -> np.ndarray:
    """How many chosen rows lie in [start, end) of each user."""
    before_R = np.concatenate([[0], np.cumsum(chosen_R)])
    return before_R[ends_U] - before_R[starts_U]


def newest(
    chosen_R: np.ndarray, starts_U: np.ndarray, ends_U: np.ndarray, count: int, also_R: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(places of each user's last `count` chosen rows in [start, end), offsets [U + 1] into them).

    also_R: further rows, which do not count; they are kept if at most `count` - 1 chosen ones follow.
    """
    before_R = np.concatenate([[0], np.cumsum(chosen_R)])
    first_U = np.maximum(before_R[ends_U] - count, before_R[starts_U])
    places = np.flatnonzero(chosen_R)
    if also_R is not None and also_R.any():
        is_cut_U = before_R[ends_U] - count >= before_R[starts_U]
        starts_U = starts_U.copy()
        starts_U[is_cut_U] = places[first_U[is_cut_U]]
        return newest(chosen_R | also_R, starts_U, ends_U, len(chosen_R))
    lengths_U = before_R[ends_U] - first_U
    offsets_U = np.concatenate([[0], np.cumsum(lengths_U)])
    ordinals = np.arange(offsets_U[-1]) + np.repeat(first_U - offsets_U[:-1], lengths_U)
    return places[ordinals], offsets_U
