"""Points of an evaluation: holdout interactions, each to be ranked from what came before its timestamp.

P points, U users of a split, B points of a batch.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pnfrec_dist.config.histories import HISTORIES, History
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.holdout_interactions import HoldoutInteractions
from pnfrec_dist.data.prepared import HoldoutData, PreparedData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import how_to_add_points
from pnfrec_dist.errors import InputError

AUTO_OF_USER, AUTO_POINTS = 12, 50_000
"""evaluation.points auto: at most this many points of a user, and of a split (but one of each user)."""


@dataclass(frozen=True)
class Points:
    """Some holdout interactions of each user, in the order of users and time."""

    lists: HoldoutInteractions
    user_P: np.ndarray
    """row of the split"""
    place_P: np.ndarray
    """place in the user's list of holdout interactions"""
    history: History
    """what the main encoder reads"""

    def __len__(self) -> int:
        return len(self.user_P)

    @cached_property
    def target_item(self) -> np.ndarray:
        return self.lists.items.values[self.lists.items.offsets[self.user_P] + self.place_P]

    @cached_property
    def target_is_positive(self) -> np.ndarray:
        return self.lists.is_positive.values[self.lists.items.offsets[self.user_P] + self.place_P].astype(bool)

    def part(self, points: np.ndarray) -> HoldoutData:
        """The points `points`, each with the histories and the seen items before its timestamp."""
        lists, users_B = self.lists, self.user_P[points]
        earlier = _Earlier(lists, users_B, lists.first_of_time[lists.items.offsets[users_B] + self.place_P[points]])
        if HISTORIES[self.history].holds_negatives:
            history = earlier.joined(lists.before_signed)
        else:
            history = earlier.joined(lists.before_positive, positive=True)
        return HoldoutData(
            history=history,
            seen=earlier.seen(),
            target_item=self.target_item[points],
            target_is_positive=self.target_is_positive[points],
            negative=earlier.joined(lists.before_negative, positive=False),
        )


def points_of(data: PreparedData, split: str, history: History, settings: EvaluationSettings) -> Points | None:
    """The points of a split's users as evaluation.points says: None for last, and for data of an earlier version, which
    do not have each user's holdout interactions."""
    lists = data.holdout_interactions(split) if settings.points != "last" else None
    if lists is None:
        return None
    count = settings.points
    if not isinstance(count, int):
        count = min(AUTO_OF_USER, max(AUTO_POINTS // max(len(lists.items), 1), 1))
    return choose_points(lists, data.user_ids(split), count, history)


def required_points(data: PreparedData, split: str, history: History, settings: EvaluationSettings) -> Points:
    """As points_of. Raises InputError if there are none."""
    found = points_of(data, split, history, settings)
    if found is None:
        way_out = f"prepare it again: {how_to_add_points(data.directory.name)}"
        raise InputError(f"{data.directory} has last interactions only, no points; {way_out}")
    return found


def choose_points(lists: HoldoutInteractions, user_ids: pa.Array, count: int, history: History) -> Points:
    """At most `count` holdout interactions of each user, drawn without replacement.

    The choice depends only on the user's id and number of holdout interactions. If a user has more than max_history of
    them, those of the first timestamp of the list are left out, because others of that timestamp may not be in it.
    """
    lengths_U = lists.items.lengths
    starts_U = _first_changes(lists)
    left_U = lengths_U - starts_U
    few = left_U <= count
    users = [np.repeat(np.flatnonzero(few), left_U[few])]
    firsts = np.cumsum(left_U[few]) - left_U[few]
    places = [np.arange(len(users[0])) - np.repeat(firsts - starts_U[few], left_U[few])]
    for user in np.flatnonzero(~few):
        seed = int.from_bytes(hashlib.sha256(user_ids[user].as_py().encode()).digest()[:8])
        users.append(np.full(count, user))
        places.append(starts_U[user] + np.random.default_rng(seed).choice(left_U[user], count, replace=False))
    user_P, place_P = np.concatenate(users), np.concatenate(places)
    order = np.lexsort((place_P, user_P))
    return Points(lists, user_P[order], place_P[order], history)


def _first_changes(lists: HoldoutInteractions) -> np.ndarray:
    """The first place after the list's first timestamp, [U], of lists that may be cut; 0 for the others."""
    user_I = np.repeat(np.arange(len(lists.items)), lists.items.lengths)
    of_first_U = np.bincount(user_I[lists.first_of_time == 0], minlength=len(lists.items))
    return np.where(lists.items.lengths == lists.max_history, of_first_U, 0)


class _Earlier:
    """The holdout interactions of each point's user before a place."""

    def __init__(self, lists: HoldoutInteractions, users_B: np.ndarray, places_B: np.ndarray) -> None:
        """places_B: that of the first interaction that is not earlier."""
        self.lists, self.users_B, self.places_B = lists, users_B, places_B
        point, self.items = lists.items.pairs(users_B)
        place = np.arange(len(point)) - np.repeat(np.cumsum(lists.items.lengths[users_B]), lists.items.lengths[users_B])
        place += lists.items.lengths[users_B][point]
        is_earlier = place < places_B[point]
        self.point, self.items = point[is_earlier], self.items[is_earlier]
        self.is_positive = lists.is_positive.pairs(users_B)[1][is_earlier].astype(bool)

    def joined(self, before: Ragged, *, positive: bool | None = None) -> Ragged:
        """The newest max_history of `before` and then the earlier holdout interactions: likes, dislikes, or all with
        signs (ragged.py: signed), as in `before`."""
        point, values = before.pairs(self.users_B)
        if self.lists.replaces and len(self.items):
            is_kept = ~np.isin(_keys(point, np.abs(values)), _keys(self.point, self.items))
            point, values = point[is_kept], values[is_kept]
        wanted = slice(None) if positive is None else self.is_positive == positive
        later = self.items if positive is not None else np.where(self.is_positive, self.items, -self.items)
        points = np.concatenate([point, self.point[wanted]])
        order = np.argsort(points, kind="stable")
        joined = np.concatenate([values, later[wanted]])[order]
        lengths_B = np.bincount(points, minlength=len(self.users_B))
        ends_B = np.cumsum(lengths_B)
        kept_B = np.minimum(lengths_B, self.lists.max_history)
        is_newest = np.arange(len(joined)) >= np.repeat(ends_B - kept_B, lengths_B)
        return Ragged(np.concatenate([[0], np.cumsum(kept_B)]), joined[is_newest])

    def seen(self) -> Ragged:
        """All items before each point, ascending."""
        point, items = self.lists.before_seen.pairs(self.users_B)
        keys = np.unique(np.concatenate([_keys(point, items), _keys(self.point, self.items)]))
        offsets = np.searchsorted(keys, np.arange(len(self.users_B) + 1, dtype=np.int64) << 32)
        return Ragged(offsets, (keys & 0xFFFFFFFF).astype(np.int32))


def _keys(points: np.ndarray, items: np.ndarray) -> np.ndarray:
    return points.astype(np.int64) << 32 | items.astype(np.int64)
