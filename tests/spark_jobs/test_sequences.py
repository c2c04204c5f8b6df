"""Streamed sequences against a few lines of plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from helpers.plain_protocol import require_points

from spark_jobs import user_rows
from spark_jobs.sequences import user_lists

SCHEMA = pa.schema(
    [
        pa.field("raw_user_id", pa.string()),
        pa.field("timestamp", pa.int64()),
        pa.field("position", pa.int64()),
        pa.field("item_id", pa.int32()),
        pa.field("is_positive", pa.bool_()),
        pa.field("is_newest", pa.bool_()),
        pa.field("newest_timestamp", pa.int64()),
        pa.field("newest_position", pa.int64()),
    ]
)


def table_of(rows: list[tuple]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def random_rows(rng: np.random.Generator, split: int, *, keep_last: bool) -> list[tuple]:
    """Users one after the other, each user's rows in any order, with ties in time. Some before T are taken back.

    keep_last: one row of an item before T and one from T on, which replaces the former if it is not taken back.
    """
    rows = []
    for user in range(rng.integers(1, 6)):
        count = int(rng.integers(1, 40))
        times, items = rng.integers(20, size=count).tolist(), rng.integers(1, 16, size=count).tolist()
        is_positive, is_undone = rng.random(count) < rng.random(), rng.random(count) < 0.1
        newest: dict[object, int] = {}
        for place in np.lexsort((np.arange(count), times)).tolist():
            newest[(items[place], times[place] >= split) if keep_last else place] = place
        for place in rng.permutation(list(newest.values())).tolist():
            is_train = times[place] < split
            by = newest.get((items[place], True), place) if keep_last and is_train else place
            by = place if is_undone[place] else by
            is_newest = by == place and not (is_train and is_undone[place])
            flags = (bool(is_positive[place]), is_newest)
            rows.append((f"u{user}", times[place], place, items[place], *flags, times[by], by))
    return rows


def slow_histories(events: list[tuple], count: int) -> dict[str, list]:
    return {
        "items": [event[3] for event in events][-count:],
        "is_positive": [event[4] for event in events][-count:],
        "positive_items": [event[3] for event in events if event[4]][-count:],
        "negative_items": [event[3] for event in events if not event[4]][-count:],
    }


def is_standing(event: tuple) -> bool:
    """Whether the row is not taken back: it is the newest of its item, or another row is."""
    return event[5] or event[2] != event[7]


def slow_before(events: list[tuple], first: int, count: int, *, keep_last: bool) -> dict[str, list]:
    """The lists before row `first`, and the rows from there on."""
    later = events[first:]
    again = {event[3] for event in later} if keep_last else set()
    before = past(events, first, keep_last=keep_last)
    kept = []
    for side in ([True, False], [True], [False]):
        kept.append([])
        for event in reversed([event for event in before if event[4] in side]):
            if sum(other[3] not in again for other in kept[-1]) < count:
                kept[-1].insert(0, event)
    return {
        "before_items": [event[3] for event in kept[0]],
        "before_is_positive": [event[4] for event in kept[0]],
        "before_positive_items": [event[3] for event in kept[1]],
        "before_negative_items": [event[3] for event in kept[2]],
        "before_seen_items": sorted({event[3] for event in before}),
        "holdout_items": [event[3] for event in later],
        "holdout_is_positive": [event[4] for event in later],
        "holdout_timestamps": [event[1] for event in later],
    }


def past(events: list[tuple], end: int, *, keep_last: bool) -> list[tuple]:
    """What counts of the first rows of a user."""
    standing = [event for event in events[:end] if is_standing(event)]
    newest = {event[3] if keep_last else place: event for place, event in enumerate(standing)}
    return sorted(newest.values())


def slow_user(user: str, events: list[tuple], count: int, split: int, *, keep_last: bool) -> dict:
    train, holdout = ([e for e in events if (e[1] < split) == side] for side in (True, False))
    _, time, _, item, positive, *_ = events[-1]
    history = [event for event in events[:-1] if event[5]]
    seen = {"seen_items": sorted({event[3] for event in history})}
    known = [event for event in events if event[5]]
    num_holdout = sum(event[1] >= split for event in known[-count:])
    listed = {"seen_items": sorted({event[3] for event in known}), "num_holdout": num_holdout}
    target = {"target_item": item, "target_is_positive": positive, "target_timestamp": time}
    target |= slow_before(events, len(events) - min(len(holdout), count), count, keep_last=keep_last)
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


def slow_points(events: list[tuple], count: int, points: int, *, keep_last: bool) -> list[dict]:
    """The lists before each of the last rows of a user."""
    pasts = [past(events, len(events) - points + point, keep_last=keep_last) for point in range(points)]
    return [slow_histories(rows, count) | {"seen_items": sorted({row[3] for row in rows})} for rows in pasts]


@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_streamed_lists_equal_the_definition_however_the_stream_is_cut(seed: int, keep_last: bool) -> None:
    rng = np.random.default_rng(seed)
    count, split = int(rng.integers(1, 6)), int(rng.integers(0, 21))
    rows = random_rows(rng, split, keep_last=keep_last)
    batches = table_of(rows).to_batches(max_chunksize=int(rng.integers(1, 12)))
    found = pa.Table.from_batches(user_lists(count, split)(iter(batches))).to_pylist()
    users = list(dict.fromkeys(user for user, *_ in rows))
    events = {user: sorted(row for row in rows if row[0] == user) for user in users}
    assert found == [slow_user(user, events[user], count, split, keep_last=keep_last) for user in users]
    for row in found:
        if row["holdout"]:
            points = len(row["holdout"]["holdout_items"])
            wanted = slow_points(events[row["raw_user_id"]], count, points, keep_last=keep_last)
            require_points(row["holdout"], wanted, count, replaces=keep_last)


def test_times_too_far_apart_for_one_key_are_ordered_all_the_same() -> None:
    rows = [(f"u{user}", time, 0, 1, True, True, time, 0) for user in range(3) for time in (2**62, -(2**62), 0)]
    users = pa.Table.from_batches(user_lists(5, 1)(iter(table_of(rows).to_batches()))).to_pylist()
    assert [(user["train_rows"], user["holdout"]["target_timestamp"]) for user in users] == [(2, 2**62)] * 3


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of rows of each table in memory."""
    found: list[int] = []
    real = user_rows.Rows.__init__

    def counting(self, batch: pa.Table, split: int, earlier: user_rows.Earlier) -> None:
        found.append(batch.num_rows)
        real(self, batch, split, earlier)

    monkeypatch.setattr(user_rows.Rows, "__init__", counting)
    return found


@pytest.mark.parametrize("split", [0, 10**6, 10**9])
def test_a_user_longer_than_any_batch_is_held_in_bounded_memory(tables: list[int], split: int) -> None:
    """A user with two million rows: only a batch and the rows of a few lists are in memory at once."""
    batch_rows, batches, keep = 8192, 250, 50

    def stream():
        for number in range(batches):
            start = number * batch_rows
            ids = np.arange(start, start + batch_rows)
            numbers = [pa.array(ids), pa.array(ids), pa.array(ids % 1000 + 1, pa.int32())]
            flags = [pa.array(ids % 3 == 0), pa.array(np.ones(batch_rows, bool))]
            newest = [pa.array(ids), pa.array(ids)]
            columns = [pa.array(["bot"] * batch_rows), *numbers, *flags, *newest]
            yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    (row,) = pa.Table.from_batches(user_lists(keep, split)(stream())).to_pylist()
    rows = batches * batch_rows
    assert max(tables) <= batch_rows + 10 * keep
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
        assert row["holdout"]["holdout_items"] == [place % 1000 + 1 for place in range(rows - keep, rows)]
        assert row["holdout"]["before_items"] == [place % 1000 + 1 for place in range(rows - 2 * keep, rows - keep)]
        assert row["holdout"]["before_seen_items"] == list(range(1, 1001))
    else:
        assert row["holdout"] is None


@pytest.mark.parametrize("holdout_first", [False, True])
def test_rows_that_later_ones_replace_are_held_in_bounded_memory(tables: list[int], holdout_first: bool) -> None:
    """All items of the rows before T come again from T on, and these rows come from Spark all before or all after."""
    items, keep, batch_rows = 20_000, 20, 500
    train, holdout = (
        [
            ("u", start + item, start + item, item + 1, True, is_newest, items + item, items + item)
            for item in range(items)
        ]
        for start, is_newest in ((0, False), (items, True))
    )
    stream = table_of([*holdout, *train] if holdout_first else [*train, *holdout]).to_batches(batch_rows)
    (row,) = pa.Table.from_batches(user_lists(keep, items)(iter(stream))).to_pylist()
    assert max(tables) <= batch_rows + 10 * keep
    assert row["holdout"]["holdout_items"] == list(range(items - keep + 1, items + 1))
    assert row["holdout"]["before_items"] == list(range(items - 2 * keep + 1, items - keep + 1))
    assert row["holdout"]["before_seen_items"] == list(range(1, items + 1))


def test_no_rows_give_no_users() -> None:
    assert list(user_lists(5, 1)(iter([]))) == []
    assert list(user_lists(5, 1)(iter(table_of([]).to_batches()))) == []
