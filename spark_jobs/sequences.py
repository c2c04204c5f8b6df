"""Interactions -> one row per user: counts, and the lists of train, of the whole history, and of the holdout.

Spark streams the rows of each partition user by user through build() as Arrow batches (user_rows.py).

Letters: R rows of a batch, U users in it.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pnfrec_dist.data.schema import HOLDOUT_SCHEMA, TRAIN_SCHEMA, USERS_SCHEMA
from spark_jobs.user_rows import COUNTS, ROW, Batches, Rows, newest, whole_users

TRAIN_COLUMNS = "items array<int>, is_positive array<boolean>, positive_items array<int>, negative_items array<int>"
HOLDOUT_COLUMNS = (
    f"{TRAIN_COLUMNS}, seen_items array<int>, target_item int, target_is_positive boolean, target_timestamp bigint, "
    "before_items array<int>, before_is_positive array<boolean>, before_positive_items array<int>, "
    "before_negative_items array<int>, before_seen_items array<int>, "
    "holdout_items array<int>, holdout_is_positive array<boolean>, holdout_timestamps array<bigint>"
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


def user_sequences(encoded: DataFrame, max_history: int, split: int) -> DataFrame:
    """USER_COLUMNS, one row per user, from encoded interactions with the rows of each user together.

    COUNTS are of the interactions before T (`split`) and from T on. train holds the lists of those before T, whole the
    lists of all rows with is_newest. holdout is null unless a user has interactions on both sides of T. Then the last
    one is the target, the earlier ones with is_newest are the history, and seen_items are its items, ascending. For
    the other columns of holdout, see schema.INTERACTIONS.
    """
    by_user = encoded.sortWithinPartitions("raw_user_id")  # does nothing if they are in this order already
    rows = by_user.withColumn("item_id", F.col("item_id").cast("int")).select(*ROW)
    return rows.mapInArrow(user_lists(max_history, split), USER_COLUMNS)


def user_lists(max_history: int, split: int) -> Callable[[Batches], Batches]:
    """Rows (ROW), user by user -> USER_COLUMNS batches."""

    def build(batches: Batches) -> Batches:
        for rows in whole_users(batches, max_history, split):
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


def _whole(rows: Rows, max_history: int) -> pa.StructArray:
    """The whole history of each user."""
    chosen_R = rows.columns.is_newest_R
    places_R, offsets_U = newest(chosen_R, rows.starts_U, rows.ends_U, max_history)
    later = np.concatenate([[0], np.cumsum(rows.columns.times_R[places_R] >= rows.split)])
    columns = [
        *_histories(rows, chosen_R, rows.ends_U, max_history),
        _seen_items(rows, chosen_R, rows.ends_U),
        pa.array(np.diff(later[offsets_U]), pa.int32()),
    ]
    return pa.StructArray.from_arrays(columns, fields=_WHOLE_FIELDS)


def _holdout(rows: Rows, max_history: int) -> pa.StructArray:
    """History and target of the users with rows on both sides of T, null for the others."""
    train_rows_U, _, holdout_rows_U, _ = rows.counts_U
    is_holdout_U = (train_rows_U > 0) & (holdout_rows_U > 0)
    targets = rows.columns.at(rows.ends_U - 1)
    history_ends_U = np.where(is_holdout_U, rows.ends_U - 1, rows.starts_U)
    columns = [
        *_histories(rows, rows.columns.is_newest_R, history_ends_U, max_history),
        _seen_items(rows, rows.columns.is_newest_R, history_ends_U),
        pa.array(targets.items_R, pa.int32()),
        pa.array(targets.is_positive_R, pa.bool_()),
        pa.array(targets.times_R, pa.int64()),
        *_interactions(rows, is_holdout_U, max_history),
    ]
    return pa.StructArray.from_arrays(columns, fields=_HOLDOUT_FIELDS, mask=pa.array(~is_holdout_U))


def _interactions(rows: Rows, is_holdout_U: np.ndarray, max_history: int) -> list[pa.Array]:
    """The columns INTERACTIONS of holdout users, empty lists for the others. All rows from T on have is_newest."""
    columns, newest_R = rows.columns, rows.columns.is_newest_R
    ends_U = np.where(is_holdout_U, rows.ends_U, rows.starts_U)
    firsts_U = np.maximum(ends_U - np.minimum(rows.counts_U[2], max_history), rows.starts_U)
    replaced = columns.replaced(rows.split)
    first = columns.at(firsts_U[np.searchsorted(rows.starts_U, replaced, side="right") - 1])
    by_later = columns.newest_times_R[replaced] > first.times_R
    by_tied = columns.newest_times_R[replaced] == first.times_R
    by_tied &= columns.newest_positions_R[replaced] >= first.positions_R
    replaced_R = np.zeros_like(newest_R)
    replaced_R[replaced[by_later | by_tied]] = True
    places_R, offsets_U = newest(newest_R, firsts_U, ends_U, max_history)
    return [
        *_histories(rows, newest_R, firsts_U, max_history, replaced_R),
        _seen_items(rows, newest_R | replaced_R, firsts_U),
        _lists(columns.items_R[places_R], offsets_U, pa.int32()),
        _lists(columns.is_positive_R[places_R], offsets_U, pa.bool_()),
        _lists(columns.times_R[places_R], offsets_U, pa.int64()),
    ]


def _histories(
    rows: Rows, chosen_R: np.ndarray, ends_U: np.ndarray, max_history: int, also_R: np.ndarray | None = None
) -> list[pa.Array]:
    """The four list columns: the newest max_history chosen rows before each user's end, oldest first. also_R: as in
    newest()."""
    items_R, is_positive_R = rows.columns.items_R, rows.columns.is_positive_R
    places_R, offsets_U = newest(chosen_R, rows.starts_U, ends_U, max_history, also_R)
    lists = [_lists(items_R[places_R], offsets_U, pa.int32()), _lists(is_positive_R[places_R], offsets_U, pa.bool_())]
    for side_R in (is_positive_R, ~is_positive_R):
        also_of_side_R = None if also_R is None else also_R & side_R
        places_R, offsets_U = newest(chosen_R & side_R, rows.starts_U, ends_U, max_history, also_of_side_R)
        lists.append(_lists(items_R[places_R], offsets_U, pa.int32()))
    return lists


def _seen_items(rows: Rows, chosen_R: np.ndarray, history_ends_U: np.ndarray) -> pa.Array:
    """Distinct items of each history, ascending; empty for users without history."""
    lengths_U = history_ends_U - rows.starts_U
    users_R = np.repeat(np.arange(len(lengths_U)), lengths_U)
    places_R = np.arange(len(users_R)) + np.repeat(rows.starts_U - (np.cumsum(lengths_U) - lengths_U), lengths_U)
    counts_R = chosen_R[places_R]
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
