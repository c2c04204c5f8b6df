"""Interactions -> one row per user, as pnfrec_dist.schema promises. Order is (timestamp, position in the source).

Spark streams the rows of each partition user by user through build() as Arrow batches, each sorted here. Of a user
who goes on in the next batch only the entries that can still reach a list are held, so memory does not grow with the
longest history (seen_items, which is complete, is bounded by the catalog).

Letters: R rows of a batch, U users in it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pnfrec_dist.schema import HOLDOUT_SCHEMA, TRAIN_SCHEMA

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
ITEM_LISTS = "items array<int>, is_positive array<boolean>, positive_items array<int>, negative_items array<int>"
TRAIN_COLUMNS = f"user_id string, {ITEM_LISTS}"
HOLDOUT_COLUMNS = (
    f"user_id string, {ITEM_LISTS}, seen_items array<int>, "
    "target_item int, target_is_positive boolean, target_timestamp bigint"
)


def train_sequences(encoded: DataFrame, max_history: int, min_positives: int = 0) -> DataFrame:
    """TRAIN_SCHEMA rows from encoded interactions, of users with at least min_positives positives."""
    return _stream(encoded, train_lists(max_history, min_positives), TRAIN_COLUMNS)


def holdout_sequences(encoded: DataFrame, max_history: int) -> DataFrame:
    """HOLDOUT_SCHEMA rows from all encoded interactions (train and holdout) of holdout users.

    The last interaction is the target, everything before it is history; seen_items are its items, ascending.
    """
    return _stream(encoded, holdout_lists(max_history), HOLDOUT_COLUMNS)


Batches = Iterator[pa.RecordBatch]


def _stream(encoded: DataFrame, build: Callable[[Batches], Batches], columns: str) -> DataFrame:
    by_user = encoded.sortWithinPartitions("raw_user_id")  # no work where they lie so already
    rows = by_user.select("raw_user_id", "timestamp", "position", F.col("item_id").cast("int"), "is_positive")
    return rows.mapInArrow(build, columns)


def train_lists(max_history: int, min_positives: int = 0) -> Callable[[Batches], Batches]:
    """Rows (raw_user_id, timestamp, position, item_id, is_positive), user by user -> TRAIN_SCHEMA batches."""

    def build(batches: Batches) -> Batches:
        for rows in _whole_users(batches, max(max_history, min_positives)):
            before_R = np.concatenate([[0], np.cumsum(rows.is_positive_R)])
            enough_U = before_R[rows.ends_U] - before_R[rows.starts_U] >= min_positives
            starts_U, ends_U = rows.starts_U[enough_U], rows.ends_U[enough_U]
            lists = _histories(rows.items_R, rows.is_positive_R, starts_U, ends_U, max_history)
            users_U = rows.users_U.filter(pa.array(enough_U))
            yield pa.RecordBatch.from_arrays([users_U, *lists], schema=TRAIN_SCHEMA)

    return build


def holdout_lists(max_history: int) -> Callable[[Batches], Batches]:
    """Rows (raw_user_id, timestamp, position, item_id, is_positive), user by user -> HOLDOUT_SCHEMA batches."""

    def build(batches: Batches) -> Batches:
        for rows in _whole_users(batches, max_history + 1, with_seen=True):
            targets_U = rows.ends_U - 1
            lists = _histories(rows.items_R, rows.is_positive_R, rows.starts_U, targets_U, max_history)
            yield pa.RecordBatch.from_arrays(
                [
                    rows.users_U,
                    *lists,
                    _seen_items(rows, targets_U),
                    pa.array(rows.items_R[targets_U], pa.int32()),
                    pa.array(rows.is_positive_R[targets_U], pa.bool_()),
                    pa.array(rows.times_R[targets_U], pa.int64()),
                ],
                schema=HOLDOUT_SCHEMA,
            )

    return build


class _Rows:
    """Rows of users, each user's in order. earlier_items: items of a long first user that are held no more."""

    def __init__(self, batch: pa.Table, earlier_items: np.ndarray) -> None:
        users = batch["raw_user_id"].combine_chunks()
        users = users.chunk(0) if isinstance(users, pa.ChunkedArray) else users
        is_new = np.concatenate([[True], pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)])
        self.starts_U = np.flatnonzero(is_new)
        self.ends_U = np.append(self.starts_U[1:], len(users))
        self.users_U = users.take(pa.array(self.starts_U))
        times_R, positions_R = batch["timestamp"].to_numpy(), batch["position"].to_numpy()
        order_R = _order(np.cumsum(is_new), times_R, positions_R)
        self.times_R, self.positions_R = times_R[order_R], positions_R[order_R]
        self.items_R = batch["item_id"].to_numpy()[order_R]
        self.is_positive_R = batch["is_positive"].to_numpy()[order_R]
        self.earlier_items = earlier_items
        self.schema = batch.schema

    def cut_last_user(self) -> pa.Table:
        """Takes the last user's rows out and returns them."""
        start = int(self.starts_U[-1])
        columns = (self.times_R, self.positions_R, self.items_R, self.is_positive_R)
        user = pa.repeat(self.users_U[-1], len(self.times_R) - start)
        last = pa.table([user, *(values[start:] for values in columns)], schema=self.schema)
        self.times_R, self.positions_R, self.items_R, self.is_positive_R = (values[:start] for values in columns)
        self.starts_U, self.ends_U, self.users_U = self.starts_U[:-1], self.ends_U[:-1], self.users_U[:-1]
        return last


def _order(users_R: np.ndarray, times_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
    """The order by (user, time, position) of rows that come user by user; users_R: 1, 2, ... in their order.

    np.lexsort of all three takes eight times as long as one stable sort, which runs along the users.
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


def _whole_users(batches: Batches, keep: int, *, with_seen: bool = False) -> Iterator[_Rows]:
    """Cuts the stream at users' ends. A user who may go on is held back, in at most 3 * keep rows."""
    nothing = np.empty(0, np.int32)
    held: pa.Table | None = None
    earlier_items = nothing
    for batch in batches:
        if batch.num_rows == 0:
            continue
        table = pa.Table.from_batches([batch])
        rows = _Rows(pa.concat_tables([held, table]) if held is not None else table, earlier_items)
        last = rows.cut_last_user()
        if len(rows.users_U):
            yield rows
            earlier_items = nothing
        needed = _newest_of_each(last["is_positive"].to_numpy(), keep)
        if with_seen and len(needed) < last.num_rows:
            dropped = np.delete(last["item_id"].to_numpy(), needed)
            earlier_items = np.union1d(earlier_items, dropped).astype(np.int32)
        held = last.take(pa.array(needed))
    if held is not None:
        yield _Rows(held, earlier_items)


def _newest_of_each(is_positive: np.ndarray, keep: int) -> np.ndarray:
    """Places of the newest `keep` rows, of the newest `keep` positives and of the newest `keep` negatives."""
    newest = [
        np.arange(len(is_positive))[-keep:],
        *(np.flatnonzero(is_positive == side)[-keep:] for side in (True, False)),
    ]
    return np.unique(np.concatenate(newest))


def _histories(
    items_R: np.ndarray, is_positive_R: np.ndarray, starts_U: np.ndarray, ends_U: np.ndarray, max_history: int
) -> list[pa.Array]:
    """The four list columns over rows [start, end) of each user, each its newest max_history entries, oldest first."""
    places_R, offsets_U = _newest(np.ones(len(items_R), bool), starts_U, ends_U, max_history)
    lists = [_lists(items_R[places_R], offsets_U, pa.int32()), _lists(is_positive_R[places_R], offsets_U, pa.bool_())]
    for side in (True, False):
        places_R, offsets_U = _newest(is_positive_R == side, starts_U, ends_U, max_history)
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


def _seen_items(rows: _Rows, targets_U: np.ndarray) -> pa.Array:
    """Distinct items of each history, ascending."""
    lengths_U = targets_U - rows.starts_U
    users = np.repeat(np.arange(len(targets_U)), lengths_U)
    is_history_R = np.ones(len(rows.items_R), bool)
    is_history_R[targets_U] = False
    items = rows.items_R[is_history_R]
    if len(rows.earlier_items):
        users = np.concatenate([np.zeros(len(rows.earlier_items), users.dtype), users])
        items = np.concatenate([rows.earlier_items, items])
    pairs = np.unique(users.astype(np.int64) << 32 | items.astype(np.int64))
    offsets_U = np.searchsorted(pairs, np.arange(len(targets_U) + 1, dtype=np.int64) << 32)
    return _lists((pairs & 0xFFFFFFFF).astype(np.int32), offsets_U, pa.int32())


def _lists(values: np.ndarray, offsets_U: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets_U, pa.int32()), pa.array(values, kind))
