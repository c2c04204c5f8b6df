"""Streamed sequences against a few lines of plain Python."""

import numpy as np
import pyarrow as pa
import pytest

from spark_jobs import sequences
from spark_jobs.sequences import user_lists

SCHEMA = pa.schema(
    [
        pa.field("raw_user_id", pa.string()),
        pa.field("timestamp", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("item_id", pa.int32()),
        pa.field("is_positive", pa.bool_()),
        pa.field("is_newest", pa.bool_()),
    ]
)


def table_of(rows: list[tuple]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def random_rows(rng: np.random.Generator, *, keep_last: bool) -> list[tuple]:
    """Users one after the other, each user's rows in any order, with ties in time."""
    rows = []
    for user in range(rng.integers(1, 6)):
        count = int(rng.integers(1, 40))
        times, items = rng.integers(20, size=count), rng.integers(1, 10, size=count)
        is_positive = rng.random(count) < rng.random()
        newest = {items[place]: place for place in np.lexsort((np.arange(count), times))}
        for position in rng.permutation(count):
            is_newest = not keep_last or newest[items[position]] == position
            place = (f"u{user}", int(times[position]), int(position))
            rows.append((*place, int(items[position]), bool(is_positive[position]), bool(is_newest)))
    return rows


def slow_histories(events: list[tuple], count: int) -> dict[str, list]:
    return {
        "items": [item for *_, item, _, _ in events][-count:],
        "is_positive": [positive for *_, positive, _ in events][-count:],
        "positive_items": [item for *_, item, positive, _ in events if positive][-count:],
        "negative_items": [item for *_, item, positive, _ in events if not positive][-count:],
    }


def slow_user(user: str, events: list[tuple], count: int, split: int) -> dict:
    train, holdout = ([e for e in events if (e[1] < split) == side] for side in (True, False))
    *_, (_, time, _, item, positive, _) = events
    history = [event for event in events[:-1] if event[5]]
    seen = {"seen_items": sorted({event[3] for event in history})}
    known = [event for event in events if event[5]]
    num_holdout = sum(event[1] >= split for event in known[-count:])
    listed = {"seen_items": sorted({event[3] for event in known}), "num_holdout": num_holdout}
    target = {"target_item": item, "target_is_positive": positive, "target_timestamp": time}
    return {
        "raw_user_id": user,
        "train_rows": len(train),
        "train_positives": sum(event[4] for event in train),
        "holdout_rows": len(holdout),
        "holdout_positives": sum(event[4] for event in holdout),
        "train": slow_histories(train, count),
        "whole": slow_histories(known, count) | listed,
        "holdout": slow_histories(history, count) | seen | target if train and holdout else None,
    }


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_streamed_lists_equal_the_definition_however_the_stream_is_cut(seed: int, keep_last: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, count, split = random_rows(rng, keep_last=keep_last), int(rng.integers(1, 6)), int(rng.integers(0, 21))
    batches = table_of(rows).to_batches(max_chunksize=int(rng.integers(1, 12)))
    found = pa.Table.from_batches(user_lists(count, split)(iter(batches))).to_pylist()
    users = list(dict.fromkeys(user for user, *_ in rows))
    events = {user: sorted(row for row in rows if row[0] == user) for user in users}
    assert found == [slow_user(user, events[user], count, split) for user in users]


def test_times_too_far_apart_for_one_key_are_ordered_all_the_same() -> None:
    rows = [(f"u{user}", time, 0, 1, True, True) for user in range(3) for time in (2**62, -(2**62), 0)]
    users = pa.Table.from_batches(user_lists(5, 1)(iter(table_of(rows).to_batches()))).to_pylist()
    assert [(user["train_rows"], user["holdout"]["target_timestamp"]) for user in users] == [(2, 2**62)] * 3


@pytest.mark.parametrize("split", [0, 10**6, 10**9])
def test_a_user_longer_than_any_batch_is_held_in_bounded_memory(monkeypatch: pytest.MonkeyPatch, split: int) -> None:
    """A user with two million rows: only a batch and the rows of a few lists are in memory at once."""
    longest, batch_rows, batches, keep = 0, 8192, 250, 50
    real = sequences._Rows.__init__

    def counting(self, batch: pa.Table, split: int, earlier: sequences._Earlier) -> None:
        nonlocal longest
        longest = max(longest, batch.num_rows)
        real(self, batch, split, earlier)

    monkeypatch.setattr(sequences._Rows, "__init__", counting)

    def stream():
        for number in range(batches):
            start = number * batch_rows
            ids = np.arange(start, start + batch_rows)
            numbers = [pa.array(ids), pa.array(ids), pa.array(ids % 1000 + 1, pa.int32())]
            flags = [pa.array(ids % 3 == 0), pa.array(np.ones(batch_rows, bool))]
            yield pa.RecordBatch.from_arrays([pa.array(["bot"] * batch_rows), *numbers, *flags], schema=SCHEMA)

    (row,) = pa.Table.from_batches(user_lists(keep, split)(stream())).to_pylist()
    rows = batches * batch_rows
    assert longest <= batch_rows + 6 * keep + 3
    assert (row["train_rows"], row["holdout_rows"]) == (min(split, rows), rows - min(split, rows))
    assert row["train_positives"] + row["holdout_positives"] == -(-rows // 3)
    assert len(row["train"]["positive_items"]) == len(row["train"]["negative_items"]) == (keep if split else 0)
    assert row["whole"]["items"] == [place % 1000 + 1 for place in range(rows - keep, rows)]
    assert row["whole"]["seen_items"] == list(range(1, 1001))
    assert row["whole"]["num_holdout"] == (keep if split < rows else 0)
    if split == 10**6:
        assert row["train"]["items"] == [place % 1000 + 1 for place in range(split - keep, split)]
        assert len(row["holdout"]["items"]) == len(row["holdout"]["positive_items"]) == keep
        assert row["holdout"]["seen_items"] == list(range(1, 1001))
        assert row["holdout"]["target_timestamp"] == rows - 1
    else:
        assert row["holdout"] is None


def test_no_rows_give_no_users() -> None:
    assert list(user_lists(5, 1)(iter([]))) == []
    assert list(user_lists(5, 1)(iter(table_of([]).to_batches()))) == []
