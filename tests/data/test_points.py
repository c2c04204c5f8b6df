"""Points of an evaluation beside a plain loop over each user's rows."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from pnfrec_dist.config.histories import History
from pnfrec_dist.data.holdout_interactions import HoldoutInteractions
from pnfrec_dist.data.points import AUTO_OF_USER, Points, choose_points
from pnfrec_dist.data.ragged import Ragged

USERS, ITEMS = 40, 12


@dataclass(frozen=True)
class Rows:
    """A user's interactions in order of time, (item, is_positive), before T and from T on; the times of the latter."""

    before: list[tuple[int, bool]]
    holdout: list[tuple[int, bool]]
    times: list[int]


def random_rows(*, replaces: bool, seed: int) -> list[Rows]:
    """With replaces, each part has an item once, as after clean.duplicates keep_last."""
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(USERS):
        parts = []
        for most in (ITEMS, 20):
            items = rng.permutation(ITEMS)[: rng.integers(ITEMS + 1)] if replaces else rng.integers(0, ITEMS, most)
            parts.append([(int(item) + 1, bool(rng.integers(2))) for item in items[: rng.integers(len(items) + 1)]])
        users.append(Rows(*parts, times=np.sort(rng.integers(0, 12, len(parts[1]))).tolist()))
    return users


def interactions(users: list[Rows], max_history: int, *, replaces: bool) -> HoldoutInteractions:
    def lists(chosen: str, of: str) -> Ragged:
        rows = [getattr(user, of) for user in users]
        kept = [[row for row in part if chosen == "all" or row[1] == (chosen == "positive")] for part in rows]
        return Ragged.of([[item for item, _ in part] for part in kept], np.int32)

    def flags(of: str) -> Ragged:
        return Ragged.of([[is_positive for _, is_positive in getattr(user, of)] for user in users], bool)

    return HoldoutInteractions(
        before_items=lists("all", "before"),
        before_is_positive=flags("before"),
        before_positive=lists("positive", "before"),
        before_negative=lists("negative", "before"),
        before_seen=Ragged.of([sorted({item for item, _ in user.before}) for user in users], np.int32),
        items=lists("all", "holdout"),
        is_positive=flags("holdout"),
        timestamps=Ragged.of([user.times for user in users]),
        replaces=replaces,
        max_history=max_history,
    )


def plain_history(user: Rows, place: int, *, replaces: bool) -> list[tuple[int, bool]]:
    """All rows before the time of a holdout interaction; with replaces, only the newest of each item."""
    earlier = [row for row, time in zip(user.holdout, user.times, strict=True) if time < user.times[place]]
    rows = [*user.before, *earlier]
    if not replaces:
        return rows
    return [row for at, row in enumerate(rows) if row[0] not in {item for item, _ in rows[at + 1 :]}]


def every_point(lists: HoldoutInteractions, history: History) -> Points:
    return choose_points(lists, pa.array([f"u{n}" for n in range(USERS)]), 1_000, history)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("history", ["positive", "all", "signed"])
def test_a_point_has_what_came_before_it(history: History, replaces: bool) -> None:
    users = random_rows(replaces=replaces, seed=1)
    points = every_point(interactions(users, 1_000, replaces=replaces), history)
    assert len(points) == sum(len(user.holdout) for user in users)
    order = np.random.default_rng(2).permutation(len(points))
    part = points.part(order)
    assert part.negative is not None
    for row, point in enumerate(order):
        user, place = users[points.user_P[point]], int(points.place_P[point])
        expected = plain_history(user, place, replaces=replaces)
        likes = [item for item, is_positive in expected if is_positive]
        read = likes if history == "positive" else [item if positive else -item for item, positive in expected]
        assert part.history.row(row).tolist() == read
        assert part.negative.row(row).tolist() == [item for item, is_positive in expected if not is_positive]
        assert part.seen.row(row).tolist() == sorted({item for item, _ in expected})
        assert (part.target_item[row], part.target_is_positive[row]) == user.holdout[place]


def test_lists_are_cut_to_the_newest() -> None:
    users = random_rows(replaces=False, seed=3)
    whole, cut = (every_point(interactions(users, most, replaces=False), "all") for most in (1_000, 21))
    cut = Points(dataclasses.replace(cut.lists, max_history=4), cut.user_P, cut.place_P, "all")
    points = np.arange(len(whole))
    whole, cut = whole.part(points), cut.part(points)
    for row in range(len(points)):
        assert cut.history.row(row).tolist() == whole.history.row(row).tolist()[-4:]


def test_the_choice_is_of_each_user_alone() -> None:
    """It stays if other users come or go, is spread over places, and has at most `count` of each user."""
    lengths = np.random.default_rng(5).integers(0, 30, 500)
    ids = pa.array([f"user {n}" for n in range(500)])

    def chosen(rows: np.ndarray) -> list[list[int]]:
        empty = Ragged.of([[]] * len(rows))
        items = Ragged.of([list(range(1, int(lengths[row]) + 1)) for row in rows])
        lists = HoldoutInteractions(empty, empty, empty, empty, empty, items, items, items, False, 200)
        points = choose_points(lists, ids.take(pa.array(rows)), AUTO_OF_USER, "all")
        return [points.place_P[points.user_P == user].tolist() for user in range(len(rows))]

    found = chosen(np.arange(500))
    for places, length in zip(found, lengths, strict=True):
        assert len(places) == min(length, AUTO_OF_USER)
        assert places == sorted(set(places)) and all(0 <= place < length for place in places)
    some = np.arange(3, 500, 7)[::-1]
    assert chosen(some) == [found[row] for row in some]
    relative = np.concatenate([np.array(p) / (n - 1) for p, n in zip(found, lengths, strict=True) if n > AUTO_OF_USER])
    assert abs(relative.mean() - 0.5) < 0.03


def test_the_first_time_of_a_list_that_is_cut_has_no_points() -> None:
    """What else happened at that time may not be in the list. Four interactions are the most that a list holds."""
    times = [[5, 5, 6, 7], [5, 6, 6], [5, 5, 5, 5], [4, 5, 5, 5]]
    empty, lists = Ragged.of([[]] * 4), Ragged.of([list(range(1, len(of_user) + 1)) for of_user in times])
    found = HoldoutInteractions(empty, empty, empty, empty, empty, lists, lists, Ragged.of(times), False, 4)
    ids = pa.array(["a", "b", "c", "d"])
    for count in (9, 2):
        points = choose_points(found, ids, count, "all")
        places = [set(points.place_P[points.user_P == user].tolist()) for user in range(4)]
        for chosen, left in zip(places, [{2, 3}, {0, 1, 2}, set(), {1, 2, 3}], strict=True):
            assert chosen <= left and len(chosen) == min(count, len(left))
