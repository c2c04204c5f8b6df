"""Interactions -> one row per user: counts, and the lists of train, of the whole history, and of the holdout.

Spark streams the rows of each partition user by user through build() as Arrow batches. Each batch is sorted here by
(timestamp, position in the source). If a user continues in the next batch, only the entries that can still be part of
a list are kept. So memory does not grow with the longest history (seen_items is complete, but bounded by the
catalog).

Letters: R rows of a batch, U users in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pnfrec_dist.data.schema import HOLDOUT_SCHEMA, TRAIN_SCHEMA, USERS_SCHEMA

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
COUNTS = ("train_rows", "train_positives", "holdout_rows", "holdout_positives")
TRAIN_COLUMNS = "items array<int>, is_positive array<boolean>, positive_items array<int>, negative_items array<int>"
HOLDOUT_COLUMNS = (
    f"{TRAIN_COLUMNS}, seen_items array<int>, target_item int, target_is_positive boolean, target_timestamp bigint"
)
WHOLE_COLUMNS = f"{TRAIN_COLUMNS}, seen_items array<int>, num_holdout int"
USER_COLUMNS = (
    f"raw_user_id string, {', '.join(f'{name} bigint' for name in COUNTS)}, "
    f"train struct<{TRAIN_COLUMNS}>, whole struct<{WHOLE_COLUMNS}>, holdout struct<{HOLDOUT_COLUMNS}>"
)
_TRAIN_FIELDS, _HOLDOUT_FIELDS = list(TRAIN_SCHEMA)[1:], list(HOLDOUT_SCHEMA)[1:]
_WHOLE_FIELDS = list(USERS_SCHEMA)[1:]
_USER_SCHEMA = pa.schema(
    [
        pa.field("raw_user_id", pa.string()),
        *(pa.field(name, pa.int64()) for name in COUNTS),
        pa.field("train", pa.struct(_TRAIN_FIELDS)),
        pa.field("whole", pa.struct(_WHOLE_FIELDS)),
        pa.field("holdout", pa.struct(_HOLDOUT_FIELDS)),
    ]
)
_ROW = ("raw_user_id", "timestamp", "position", "item_id", "is_positive", "is_newest")


def user_sequences(encoded: DataFrame, max_history: int, split: int) -> DataFrame:
    """USER_COLUMNS, one row per user, from encoded interactions with the rows of each user together.

    COUNTS are of the interactions before T (`split`) and from T on. train holds the lists of those before T, whole the
    lists of all rows with is_newest. holdout is null unless a user has interactions on both sides of T. Then the last
    one is the target, the earlier ones with is_newest are the history, and seen_items are its items, ascending.
    """
    by_user = encoded.sortWithinPartitions("raw_user_id")  # does nothing if they are in this order already
    rows = by_user.withColumn("item_id", F.col("item_id").cast("int")).select(*_ROW)
    return rows.mapInArrow(user_lists(max_history, split), USER_COLUMNS)


Batches = Iterator[pa.RecordBatch]


def user_lists(max_history: int, split: int) -> Callable[[Batches], Batches]:
    """Rows (_ROW), user by user -> USER_COLUMNS batches."""

    def build(batches: Batches) -> Batches:
        for rows in _whole_users(batches, max_history, split):
            train = _histories(rows, rows.columns.times_R < split, rows.ends_U, max_history)
            columns = [
                rows.users_U,
                *(pa.array(count_U) for count_U in rows.counts_U),
                pa.StructArray.from_arrays(train, fields=_TRAIN_FIELDS),
                _whole(rows, max_history),
                _holdout(rows, max_history),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=_USER_SCHEMA)

    return build


def _whole(rows: "_Rows", max_history: int) -> pa.StructArray:
    """The whole history of each user."""
    chosen_R = rows.columns.is_newest_R
    places_R, offsets_U = _newest(chosen_R, rows.starts_U, rows.ends_U, max_history)
    later = np.concatenate([[0], np.cumsum(rows.columns.times_R[places_R] >= rows.split)])
    columns = [
        *_histories(rows, chosen_R, rows.ends_U, max_history),
        _seen_items(rows, rows.ends_U),
        pa.array(np.diff(later[offsets_U]), pa.int32()),
    ]
    return pa.StructArray.from_arrays(columns, fields=_WHOLE_FIELDS)


def _holdout(rows: "_Rows", max_history: int) -> pa.StructArray:
    """History and target of the users with rows on both sides of T, null for the others."""
    train_rows_U, _, holdout_rows_U, _ = rows.counts_U
    is_holdout_U = (train_rows_U > 0) & (holdout_rows_U > 0)
    targets = rows.columns.at(rows.ends_U - 1)
    history_ends_U = np.where(is_holdout_U, rows.ends_U - 1, rows.starts_U)
    columns = [
        *_histories(rows, rows.columns.is_newest_R, history_ends_U, max_history),
        _seen_items(rows, history_ends_U),
        pa.array(targets.items_R, pa.int32()),
        pa.array(targets.is_positive_R, pa.bool_()),
        pa.array(targets.times_R, pa.int64()),
    ]
    return pa.StructArray.from_arrays(columns, fields=_HOLDOUT_FIELDS, mask=pa.array(~is_holdout_U))


@dataclass(frozen=True)
class _Earlier:
    """A summary of the rows of a user that are no longer kept: the items of those with is_newest, and COUNTS."""

    items: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(COUNTS), np.int64))


class _Columns(NamedTuple):
    """All columns of rows except the user."""

    times_R: np.ndarray
    positions_R: np.ndarray
    items_R: np.ndarray
    is_positive_R: np.ndarray
    is_newest_R: np.ndarray

    def at(self, places: np.ndarray | slice) -> "_Columns":
        """The rows at some places."""
        return _Columns(*(values_R[places] for values_R in self))


class _Rows:
    """Rows of users, sorted for each user, and COUNTS by user. earlier: rows of the first user no longer kept."""

    def __init__(self, batch: pa.Table, split: int, earlier: _Earlier) -> None:
        users = batch["raw_user_id"].combine_chunks()
        users = users.chunk(0) if isinstance(users, pa.ChunkedArray) else users
        is_new = np.concatenate([[True], pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)])
        self.starts_U = np.flatnonzero(is_new)
        self.ends_U = np.append(self.starts_U[1:], len(users))
        self.users_U = users.take(pa.array(self.starts_U))
        columns = _Columns(*(batch[name].to_numpy() for name in _ROW[1:]))
        self.columns = columns.at(_order(np.cumsum(is_new), columns.times_R, columns.positions_R))
        counted = _counted(self.columns, split)
        self.counts_U = [_count(counted_R, self.starts_U, self.ends_U) for counted_R in counted]
        for count_U, count in zip(self.counts_U, earlier.counts, strict=True):
            count_U[0] += count
        self.split, self.earlier, self.schema = split, earlier, batch.schema

    def hold_last_user(self, max_history: int) -> tuple[pa.Table, _Earlier]:
        """Removes the last user; returns its rows that can still be part of a list, and a summary of its others."""
        counts = np.array([count_U[-1] for count_U in self.counts_U])
        self.counts_U = [count_U[:-1] for count_U in self.counts_U]
        earlier_items = self.earlier.items if len(self.users_U) == 1 else _Earlier().items
        start, user = int(self.starts_U[-1]), self.users_U[-1]
        self.starts_U, self.ends_U, self.users_U = self.starts_U[:-1], self.ends_U[:-1], self.users_U[:-1]
        last, self.columns = self.columns.at(slice(start, None)), self.columns.at(slice(start))
        counted = _counted(last, self.split)
        in_train = _newest_of_each(counted[0], last.is_positive_R, max_history)
        needed = np.union1d(in_train, _newest_of_each(last.is_newest_R, last.is_positive_R, max_history + 1))
        held = pa.table([pa.repeat(user, len(needed)), *last.at(needed)], schema=self.schema)
        is_seen_R = last.is_newest_R.copy()
        is_seen_R[needed] = False
        items = np.union1d(earlier_items, last.items_R[is_seen_R]).astype(np.int32)
        return held, _Earlier(items, counts - [np.count_nonzero(counted_R[needed]) for counted_R in counted])


def _counted(columns: _Columns, split: int) -> tuple[np.ndarray, ...]:
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


def _whole_users(batches: Batches, max_history: int, split: int) -> Iterator[_Rows]:
    """Cuts the stream between users. At most 6 * max_history + 3 rows of a user who may continue are kept."""
    held: pa.Table | None = None
    earlier = _Earlier()
    for batch in batches:
        if batch.num_rows == 0:
            continue
        table = pa.Table.from_batches([batch])
        rows = _Rows(pa.concat_tables([held, table]) if held is not None else table, split, earlier)
        held, earlier = rows.hold_last_user(max_history)
        if len(rows.users_U):
            yield rows
    if held is not None:
        yield _Rows(held, split, earlier)


def _newest_of_each(chosen_R: np.ndarray, is_positive_R: np.ndarray, keep: int) -> np.ndarray:
    """Places of the newest `keep` chosen rows, and of the newest `keep` positives and negatives among them."""
    sides = (chosen_R, chosen_R & is_positive_R, chosen_R & ~is_positive_R)
    return np.concatenate([np.flatnonzero(side_R)[-keep:] for side_R in sides])


def _count(chosen_R: np.ndarray, starts_U: np.ndarray, ends_U: np.ndarray) -> np.ndarray:
    """How many chosen rows lie in [start, end) of each user."""
    before_R = np.concatenate([[0], np.cumsum(chosen_R)])
    return before_R[ends_U] - before_R[starts_U]


def _histories(rows: _Rows, chosen_R: np.ndarray, ends_U: np.ndarray, max_history: int) -> list[pa.Array]:
    """The four list columns: the newest max_history chosen rows before each user's end, oldest first."""
    items_R, is_positive_R = rows.columns.items_R, rows.columns.is_positive_R
    places_R, offsets_U = _newest(chosen_R, rows.starts_U, ends_U, max_history)
    lists = [_lists(items_R[places_R], offsets_U, pa.int32()), _lists(is_positive_R[places_R], offsets_U, pa.bool_())]
    for side_R in (is_positive_R, ~is_positive_R):
        places_R, offsets_U = _newest(chosen_R & side_R, rows.starts_U, ends_U, max_history)
        lists.append(_lists(items_R[places_R], offsets_U, pa.int32()))
    return lists


def _newest(
    chosen_R: np.ndarray, starts_U: np.ndarray, ends_U: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(places of each user's last `count` chosen rows in [start, end), offsets [U + 1] into them)."""
    before_R = np.concatenate([[0], np.cumsum(chosen_R)])
    first_U = np.maximum(before_R[ends_U] - count, before_R[starts_U])
    lengths_U = before_R[ends_U] - first_U
    offsets_U = np.concatenate([[0], np.cumsum(lengths_U)])
    ordinals = np.arange(offsets_U[-1]) + np.repeat(first_U - offsets_U[:-1], lengths_U)
    return np.flatnonzero(chosen_R)[ordinals], offsets_U


def _seen_items(rows: _Rows, history_ends_U: np.ndarray) -> pa.Array:
    """Distinct items of each history, ascending; empty for users without history."""
    lengths_U = history_ends_U - rows.starts_U
    users_R = np.repeat(np.arange(len(lengths_U)), lengths_U)
    places_R = np.arange(len(users_R)) + np.repeat(rows.starts_U - (np.cumsum(lengths_U) - lengths_U), lengths_U)
    counts_R = rows.columns.is_newest_R[places_R]
    users, items = users_R[counts_R], rows.columns.items_R[places_R[counts_R]]
    if lengths_U[0] > 0:
        users = np.concatenate([np.zeros(len(rows.earlier.items), users.dtype), users])
        items = np.concatenate([rows.earlier.items, items])
    pairs = np.sort(users.astype(np.int64) << 32 | items.astype(np.int64))
    pairs = pairs[
        np.append(True, np.diff(pairs) > 0)[: len(pairs)]
    ]  # np.unique uses hashes and takes eight times as long
    offsets_U = np.searchsorted(pairs, np.arange(len(lengths_U) + 1, dtype=np.int64) << 32)
    return _lists((pairs & 0xFFFFFFFF).astype(np.int32), offsets_U, pa.int32())


def _lists(values: np.ndarray, offsets_U: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets_U, pa.int32()), pa.array(values, kind))
