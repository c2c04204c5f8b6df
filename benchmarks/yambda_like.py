"""python -m benchmarks.yambda_like DIRECTORY: writes a log with the schema of Yambda's flat/*/multi_event.parquet.

Yambda is a log of Yandex Music (https://huggingface.co/datasets/yandex/yambda). Its shares of events, its distributions
of played percent and track lengths, and its ties in time are met approximately. Every user and every track has a group
of taste: users play, finish and like tracks of their two groups more often, and dislike others more often.

Shape letters: N rows of a chunk, U users of a chunk, T tracks.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.files.atomic import replaced
from pnfrec_dist.files.text import file_size

FILE = "multi_event.parquet"
EVENTS = ["listen", "dislike", "like", "undislike", "unlike"]
"""In Yambda's order: rows of a user with the same time stand in this order, so that an event precedes its undoing."""
LISTEN, DISLIKE, LIKE, UNDISLIKE, UNLIKE = range(5)
SCHEMA = pa.schema(
    [
        ("uid", pa.uint32()),
        ("timestamp", pa.uint32()),
        ("item_id", pa.uint32()),
        ("is_organic", pa.uint8()),
        ("played_ratio_pct", pa.uint16()),
        ("track_length_seconds", pa.uint32()),
        pa.field(
            "event_type",
            pa.dictionary(pa.uint32(), pa.string()),
            metadata={"_PL_ENUM_VALUES": "".join(f"{len(name)};{name}" for name in EVENTS)},  # as Polars writes it
        ),
    ]
)
LAST_SECOND, STEP = 26_000_000, 5
"""Times are seconds since the first event of the log, in multiples of 5."""
CHUNK = 1_000_000
"""About the rows that are made at once, which become a row group. A chunk holds whole users."""

GROUPS = 50
SLOTS = 8
"""Mean number of slots of a track in the urn from which tracks are drawn."""
ACTIVITY, POPULARITY = 1.3, 1.5
"""Spread (sigma of the log) of rows per user and of plays per track."""
FROM_OWN_GROUPS, REPEATED = 0.6, 0.35
"""Shares of rows: a track of the user's two groups; a track that the user has met before."""
OTHER, OWN = 0, 1
LIKED, DISLIKED, FINISHED = np.array([0.0076, 0.0285]), np.array([0.0047, 0.0008]), np.array([0.47, 0.745])
"""Probabilities for a track of another group and of the user's own: a like, a dislike, and 50 % or more played."""
UNDONE = {LIKE: (UNLIKE, 0.36), DISLIKE: (UNDISLIKE, 0.19)}
"""Event -> (the event that undoes it, the probability of that)."""
ORGANIC = np.array([0.51, 0.52, 0.58, 0.90, 0.95])
"""Probability of is_organic = 1 for each of EVENTS."""
ROWS_PER_SESSION = 15

_SKIPPED = np.concatenate([np.zeros(205), 1 + 49 * np.linspace(0, 1, 795, endpoint=False) ** 1.5])
_FINISHED = np.concatenate([np.linspace(50, 100, 158, endpoint=False), np.full(834, 100), np.linspace(101, 159, 8)])
PERCENT = np.stack([_SKIPPED, _FINISHED]).astype(np.uint16)
"""Quantiles of played percent, [0]: of rows with less than 50, [1]: of the others."""


@dataclass(frozen=True)
class Tracks:
    """Tracks 0..T-1, sorted by group. A draw from the urn is proportional to popularity."""

    ids_T: np.ndarray
    """uint32, a random tenth of 1..10 T"""
    seconds_T: np.ndarray
    """uint32, multiples of 5"""
    group_T: np.ndarray
    urn: np.ndarray
    """int32 tracks, each as often as it is popular; tracks of a group are together"""
    first_slot: np.ndarray
    """of each group in the urn, and the urn's length at the end"""


def write_yambda_like(path: Path, rows: int, users: int, tracks: int, seed: int = 0) -> None:
    """Writes exactly `rows` rows of `users` users, sorted by (uid, timestamp), in one move. Equal seeds: equal bytes.

    tracks: to draw from; with few rows per track, some do not occur. Memory: below 0.5 GB for 500,000 users and a
    million tracks; more if a user has millions of rows.
    """
    if not 1 <= users <= min(rows, 42_000_000) or not 1 <= tracks <= 200_000_000:
        limits = "users must be 1 to the rows and at most 42 million, tracks 1 to 200 million"
        raise ValueError(f"{rows} rows, {users} users, {tracks} tracks; {limits}")
    rng = np.random.default_rng(seed)
    catalog = make_tracks(tracks, rng)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as draft, pq.ParquetWriter(draft, SCHEMA, compression="lz4") as writer:
        for first_user, counts_U in _chunks(rows, users, rng):
            writer.write_table(_chunk(first_user, counts_U, catalog, rng), row_group_size=2 * CHUNK)


def make_tracks(tracks: int, rng: np.random.Generator) -> Tracks:
    """The catalog. It is the first that is drawn from the generator of a log."""
    group_T = np.sort(rng.integers(0, GROUPS, tracks, dtype=np.int8))
    weight_T = rng.lognormal(0, POPULARITY, tracks)
    slots_T = np.ceil(weight_T / weight_T.mean() * SLOTS).astype(np.int64)
    first_slot = np.zeros(GROUPS + 1, np.int64)
    first_slot[1:] = np.cumsum(np.bincount(group_T, slots_T, GROUPS))
    return Tracks(
        ids_T=(10 * rng.permutation(tracks) + rng.integers(1, 11, tracks)).astype(np.uint32),
        seconds_T=STEP * (200 / STEP * np.exp(0.21 * rng.standard_t(4, tracks))).round().clip(1, 499).astype(np.uint32),
        group_T=group_T,
        urn=np.repeat(np.arange(tracks, dtype=np.int32), slots_T),
        first_slot=first_slot,
    )


def _chunks(rows: int, users: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first user, rows of each user) of each chunk. Every user has at least one row."""
    weight = np.cumsum(rng.lognormal(0, ACTIVITY, users))
    ends = np.arange(1, users + 1) + np.floor(weight / weight[-1] * (rows - users)).astype(np.int64)
    cuts = np.unique(np.append(np.searchsorted(ends, np.arange(CHUNK, rows, CHUNK)), users))
    first = 0
    for last in cuts[cuts > 0]:
        yield first, np.diff(ends[first:last], prepend=ends[first - 1] if first else 0)
        first = int(last)


def _chunk(first_user: int, counts_U: np.ndarray, catalog: Tracks, rng: np.random.Generator) -> pa.Table:
    """All rows of some users."""
    end_U = np.cumsum(counts_U)
    user_N = np.repeat(np.arange(len(counts_U), dtype=np.int32), counts_U)
    place_N = np.arange(len(user_N)) - np.repeat(end_U - counts_U, counts_U)
    """Number of the user's rows before this one."""
    track_N, own_N = _played(user_N, place_N, len(counts_U), catalog, rng)
    event_N = _react(user_N, place_N, track_N, own_N, rng)
    _undo(event_N, track_N, end_U[user_N], rng)
    finished_N = rng.random(len(user_N), np.float32) < FINISHED.astype(np.float32)[own_N]
    percent_N = PERCENT[finished_N.view(np.int8), rng.integers(0, PERCENT.shape[1], len(user_N), dtype=np.int16)]
    length_N = catalog.seconds_T[track_N]
    seconds_N = np.where(event_N == LISTEN, length_N * (percent_N / np.float32(100)), 0)
    time_N = _times(user_N, seconds_N, end_U, rng)
    order_N = _order(user_N, time_N, event_N)
    event_N, is_null_N = event_N[order_N], event_N[order_N] != LISTEN
    organic_N = rng.random(len(user_N), np.float32) < ORGANIC.astype(np.float32)[event_N]
    columns = [
        100 * (first_user + 1 + user_N.astype(np.uint32)),
        time_N,
        catalog.ids_T[track_N[order_N]],
        organic_N.astype(np.uint8),
        pa.array(percent_N[order_N], mask=is_null_N),
        pa.array(length_N[order_N], mask=is_null_N),
        pa.DictionaryArray.from_arrays(pa.array(event_N, pa.uint32()), EVENTS),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)


def _played(
    user_N: np.ndarray, place_N: np.ndarray, users: int, catalog: Tracks, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(the track of each row, 1 if it is of the user's groups). A user's early tracks are the most repeated."""
    rows = len(user_N)
    groups_2U = catalog.group_T[rng.integers(0, len(catalog.group_T), (2, users))]
    own_group_N = groups_2U[rng.integers(0, 2, rows, dtype=np.int8), user_N]
    from_own_N = rng.random(rows, np.float32) < FROM_OWN_GROUPS
    low_N = np.where(from_own_N, catalog.first_slot[own_group_N], 0)
    high_N = np.where(from_own_N, catalog.first_slot[own_group_N + 1], len(catalog.urn))
    track_N = catalog.urn[low_N + (rng.random(rows) * (high_N - low_N)).astype(np.int64)]
    repeat = np.flatnonzero(rng.random(rows, np.float32) < REPEATED)
    met = (place_N[repeat] * rng.random(len(repeat)) ** 2).astype(np.int64)
    track_N[repeat] = track_N[repeat - place_N[repeat] + met]
    group_N = catalog.group_T[track_N]
    return track_N, (group_N == groups_2U[0, user_N]).view(np.int8) | (group_N == groups_2U[1, user_N])


def _react(
    user_N: np.ndarray, place_N: np.ndarray, track_N: np.ndarray, own_N: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The event of each row: a listen, or a first like or dislike of the track of the row before.

    Changes track_N in the rows of likes and dislikes.
    """
    event_N = np.full(len(user_N), LISTEN, np.int8)
    drawn_N = rng.random(len(user_N), np.float32)
    rows = np.flatnonzero((drawn_N < (LIKED + DISLIKED).max()) & (place_N > 0))
    liked, disliked = LIKED[own_N[rows - 1]], DISLIKED[own_N[rows - 1]]
    drawn = drawn_N[rows]
    event = np.select([drawn < liked, drawn < liked + disliked], [LIKE, DISLIKE], LISTEN)
    reacts = event != LISTEN
    rows, event = rows[reacts], event[reacts]
    track = track_N[rows - 1]
    pair = user_N[rows].astype(np.int64) << 32 | track.astype(np.int64) << 3 | event
    first = np.unique(pair, return_index=True)[1]
    event_N[rows[first]], track_N[rows[first]] = event[first], track[first]
    return event_N


def _undo(event_N: np.ndarray, track_N: np.ndarray, end_N: np.ndarray, rng: np.random.Generator) -> None:
    """Turns a later listen of the user into the undoing of a like or dislike. end_N: after the user's last row."""
    for event, (undoing, share) in UNDONE.items():
        done = np.flatnonzero(event_N == event)
        done = done[rng.random(len(done)) < share]
        later = done + 1 + (rng.random(len(done)) * (end_N[done] - done - 1)).astype(np.int64)
        inside = later < end_N[done]
        done, later = done[inside], later[inside]
        later, first = np.unique(later, return_index=True)
        is_free = event_N[later] == LISTEN
        done, later = done[first][is_free], later[is_free]
        event_N[later], track_N[later] = undoing, track_N[done]


def _times(user_N: np.ndarray, seconds_N: np.ndarray, end_U: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Times that do not decrease within a user. A row follows as soon as the one before has been heard, or in a new
    session; sessions are spread over the user's time in the service.

    seconds_N: how long each row was heard; end_U: after the user's last row.
    """
    rows, users, start_U = len(user_N), len(end_U), np.append(0, end_U[:-1])
    joined_U, left_U = LAST_SECOND * rng.uniform([[0], [0.8]], [[0.2], [1]], (2, users))
    pause_N = np.zeros(rows)
    new_session = np.flatnonzero(rng.random(rows, np.float32) < 1 / ROWS_PER_SESSION)
    pause_N[new_session] = rng.exponential(size=len(new_session))
    heard_N = np.cumsum(seconds_N, dtype=np.float64)
    pauses_N = np.cumsum(pause_N)
    heard_U, pauses_U = (total_N[end_U - 1] - total_N[start_U] for total_N in (heard_N, pauses_N))
    speed_U = np.minimum(1, 0.9 * (left_U - joined_U) / np.maximum(heard_U, 1))
    scale_U = (left_U - joined_U - speed_U * heard_U) / np.maximum(pauses_U, 1)
    first_U = joined_U - speed_U * (heard_N - seconds_N)[start_U] - scale_U * pauses_N[start_U]
    time_N = first_U[user_N] + speed_U[user_N] * (heard_N - seconds_N) + scale_U[user_N] * pauses_N
    return (time_N.clip(0, LAST_SECOND) / STEP).astype(np.uint32) * np.uint32(STEP)


def _order(user_N: np.ndarray, time_N: np.ndarray, event_N: np.ndarray) -> np.ndarray:
    """The order of rows within equal users and times: that of EVENTS, then as they are."""
    is_new_N = (np.diff(time_N, prepend=0) != 0) | (np.diff(user_N, prepend=-1) != 0)
    return np.argsort(np.cumsum(is_new_N) << 3 | event_N, kind="stable")


def main() -> None:
    """Writes DIRECTORY/multi_event.parquet and prints its size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.yambda_like", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=float, default=5e6)
    parser.add_argument("--users", type=float, help="default: rows / 100")
    parser.add_argument("--tracks", type=float, help="default: rows / 50")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = int(options.rows)
    users, tracks = int(options.users or max(rows // 100, 1)), int(options.tracks or max(rows // 50, 1))
    path, started = options.directory / FILE, time.monotonic()
    write_yambda_like(path, rows, users, tracks, options.seed)
    seconds = time.monotonic() - started
    size = file_size(path.stat().st_size)
    print(f"{path}: {rows:,} rows, {users:,} users, {tracks:,} tracks, {size}, {seconds:.1f} s")


if __name__ == "__main__":
    main()
