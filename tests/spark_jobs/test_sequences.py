"""Streamed sequences against a few lines of plain Python."""

import numpy as np
import pyarrow as pa
import pytest

from spark_jobs import sequences
from spark_jobs.sequences import holdout_lists, train_lists

SCHEMA = pa.schema(
    [
        pa.field("raw_user_id", pa.string()),
        pa.field("timestamp", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("item_id", pa.int32()),
        pa.field("is_positive", pa.bool_()),
    ]
)


def table_of(rows: list[tuple]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def random_rows(rng: np.random.Generator) -> list[tuple]:
    """Users one after the other, each user's rows in any order, with ties in time."""
    return [
        (f"u{user}", int(rng.integers(20)), int(position), int(rng.integers(1, 10)), bool(rng.random() < rng.random()))
        for user in range(rng.integers(1, 6))
        for position in rng.permutation(rng.integers(1, 40))
    ]


def slow_histories(events: list[tuple], count: int) -> dict[str, list]:
    return {
        "items": [item for *_, item, _ in events][-count:],
        "is_positive": [positive for *_, positive in events][-count:],
        "positive_items": [item for *_, item, positive in events if positive][-count:],
        "negative_items": [item for *_, item, positive in events if not positive][-count:],
    }


@pytest.mark.parametrize("seed", range(60))
def test_streamed_lists_equal_the_definition_however_the_stream_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, count = random_rows(rng), int(rng.integers(1, 6))
    batches = table_of(rows).to_batches(max_chunksize=int(rng.integers(1, 12)))
    train = pa.Table.from_batches(train_lists(count)(iter(batches))).to_pylist()
    holdout = pa.Table.from_batches(holdout_lists(count)(iter(batches))).to_pylist()
    users = list(dict.fromkeys(user for user, *_ in rows))
    assert [row["user_id"] for row in train] == [row["user_id"] for row in holdout] == users
    for user, train_row, holdout_row in zip(users, train, holdout, strict=True):
        events = sorted(row for row in rows if row[0] == user)
        *history, (_, time, _, item, positive) = events
        assert train_row == {"user_id": user, **slow_histories(events, count)}
        assert holdout_row == {
            "user_id": user,
            **slow_histories(history, count),
            "seen_items": sorted({row[3] for row in history}),
            "target_item": item,
            "target_is_positive": positive,
            "target_timestamp": time,
        }


@pytest.mark.parametrize("lists", [train_lists, holdout_lists])
def test_a_user_longer_than_any_batch_is_held_in_bounded_memory(monkeypatch: pytest.MonkeyPatch, lists) -> None:
    """A bot's two million rows: never more than a batch and three times max_history of them at once."""
    longest, batch_rows, batches, keep = 0, 8192, 250, 50
    real = sequences._Rows.__init__

    def counting(self, batch: pa.Table, earlier_items: np.ndarray) -> None:
        nonlocal longest
        longest = max(longest, batch.num_rows)
        real(self, batch, earlier_items)

    monkeypatch.setattr(sequences._Rows, "__init__", counting)

    def stream():
        for number in range(batches):
            start = number * batch_rows
            ids = np.arange(start, start + batch_rows)
            numbers = [pa.array(ids), pa.array(ids), pa.array(ids % 1000 + 1, pa.int32())]
            columns = [pa.array(["bot"] * batch_rows), *numbers, pa.array(ids % 3 == 0)]
            yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    (row,) = pa.Table.from_batches(lists(keep)(stream())).to_pylist()
    assert longest <= batch_rows + 3 * (keep + 1)
    assert len(row["items"]) == len(row["positive_items"]) == len(row["negative_items"]) == keep
    if lists is holdout_lists:
        assert row["seen_items"] == list(range(1, 1001))
        assert row["target_timestamp"] == batches * batch_rows - 1


def test_no_rows_give_no_users() -> None:
    assert list(train_lists(5)(iter([]))) == []
    assert list(holdout_lists(5)(iter(table_of([]).to_batches()))) == []
