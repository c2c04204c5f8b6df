"""A trained model in a Python program: makes lists for users given by their liked and disliked raw item ids."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pnfrec_dist.data.ragged import Ragged, signed
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.recommender import Recommender, Users

FRAME_COLUMNS = ("user_id", "item_id", "is_liked")
"""Columns of a DataFrame of interactions, oldest first."""


@dataclass(frozen=True)
class Feedback:
    """The feedback of one user: raw item ids, oldest first."""

    liked: Sequence[str] = ()
    disliked: Sequence[str] = ()
    history: Sequence[tuple[str, float]] = ()
    """(item, relevance) of each interaction, instead of liked and disliked; the model's threshold separates them"""


@dataclass(frozen=True)
class Recommendations:
    """The list for one user."""

    items: list[str]
    """raw item ids, best first, without the items of the user's feedback"""
    scores: list[float]
    unknown: list[str]
    """items of the user's feedback that the model does not know"""
    is_popular: bool
    """whether popular items are listed, because the model knew no item that it reads"""


class Model:
    """A trained model, ready to rank its catalog."""

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self._recommender = Recommender(exported.model, exported.num_positive_V)
        self._item_ids = {raw: number for number, raw in enumerate(exported.raw_ids, PAD_ID + 1)}

    def __repr__(self) -> str:
        return f"Model({self.exported.settings.model}, {len(self.item_ids):,} items)"

    @property
    def item_ids(self) -> list[str]:
        """Raw ids of the catalog."""
        return self.exported.raw_ids

    def recommend(
        self,
        liked: Sequence[object] = (),
        disliked: Sequence[object] = (),
        *,
        users: Any = None,
        k: int = 10,
        gamma: float | None = None,
    ) -> Any:
        """The k best items of one user, or of several.

        liked, disliked: raw item ids of one user, oldest first; the result is a Recommendations.
        users: {user: Feedback, or {"liked": [...], "disliked": [...]}, or [(item, relevance), ...]}, or a pandas
        DataFrame with the columns user_id, item_id and is_liked, oldest first; the result is {user: Recommendations}.
        gamma: weight of the score as next dislike, which is subtracted (0: the paper's ranking; None:
        evaluation.gamma of the training).

        Raises InputError for users of another form, for k < 1, and for gamma > 0 if the model predicts no dislikes.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is {k!r}; it must be a whole number >= 1")
        if users is None:
            return self.lists([Feedback(_texts(liked), _texts(disliked))], [k], gamma)[0]
        if _texts(liked) or _texts(disliked):
            raise InputError("give users, or liked and disliked, not both")
        found = _by_user(users)
        return dict(zip(found, self.lists(list(found.values()), [k] * len(found), gamma), strict=True))

    def lists(
        self, users: Sequence[Feedback], lengths: Sequence[int], gamma: float | None = None
    ) -> list[Recommendations]:
        """The list of each user, of the given length. Raises InputError for gamma > 0 if the model predicts no
        dislikes."""
        if not users:
            return []
        raw_ids, numbers = self.exported.raw_ids, self._item_ids
        given = [self._interactions(user) for user in users]
        encoded = self._encoded(
            [[(numbers[raw], is_liked) for raw, is_liked in of_user if raw in numbers] for of_user in given]
        )
        longest = min(max(lengths), len(raw_ids))
        ranking = self._recommender.rank(encoded, np.arange(len(users)), longest, self.exported.gamma(gamma))
        found = []
        for place, length in enumerate(lengths):
            items, scores = ranking.items_BK[place].tolist(), ranking.scores_BK[place].tolist()
            count = min(length, longest - items.count(PAD_ID))
            found.append(
                Recommendations(
                    items=[raw_ids[item - 1] for item in items[:count]],
                    scores=scores[:count],
                    unknown=[raw for raw in dict.fromkeys(raw for raw, _ in given[place]) if raw not in numbers],
                    is_popular=not encoded.history.lengths[place],
                )
            )
        return found

    def _interactions(self, user: Feedback) -> list[tuple[str, bool]]:
        """(raw id, whether it is liked), oldest first. The order between liked and disliked is not known: the likes
        come last."""
        if user.history:
            return [(item, float(relevance) >= self.exported.threshold) for item, relevance in user.history]
        return [*((raw, False) for raw in user.disliked), *((raw, True) for raw in user.liked)]

    def _encoded(self, known: Sequence[Sequence[tuple[int, bool]]]) -> Users:
        """known: (item, whether it is liked) of each user."""
        items = Ragged.of([[item for item, _ in of_user] for of_user in known])
        flags = Ragged.of([[is_liked for _, is_liked in of_user] for of_user in known], bool)
        liked, disliked = (
            Ragged.of([[item for item, is_liked in of_user if is_liked == wanted] for of_user in known])
            for wanted in (True, False)
        )
        kind = self.exported.settings.encoder.history_kind
        history = kind.choose(positive_items=liked, negative_items=disliked, items=items)
        return Users(signed(history, flags) if kind.holds_negatives else history, disliked, items)


def _texts(ids: Any) -> list[str]:
    """Raw ids as text. Raises InputError for a single text and for what is no sequence."""
    if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
        raise InputError(f"{ids!r} is no list; item ids must be a list")
    return [_text(item) for item in ids]


def _text(item: object) -> str:
    """A raw id as the preparation spells it: 7.0 is 7."""
    if isinstance(item, float | np.floating) and float(item).is_integer():
        return str(int(item))
    return str(item)


def _by_user(users: Any) -> dict[Any, Feedback]:
    if isinstance(users, Mapping):
        return {user: _feedback(user, content) for user, content in users.items()}
    if not hasattr(users, "columns"):
        raise InputError(f"users is a {type(users).__name__}; it must be a mapping or a DataFrame")
    missing = [name for name in FRAME_COLUMNS if name not in users.columns]
    if missing:
        raise InputError(f"the DataFrame has no column {missing[0]!r}; it must have {', '.join(FRAME_COLUMNS)}")
    if not users.columns.is_unique:
        raise InputError("the DataFrame has several columns of one name; rename them")
    rows: dict[Any, list[tuple[str, float]]] = {}
    for user, item, is_liked in users[list(FRAME_COLUMNS)].itertuples(index=False, name=None):
        if not isinstance(is_liked, bool | np.bool_ | int | np.integer | float | np.floating) or is_liked not in (0, 1):
            way_out = "give ratings as {user: [(item, rating), ...]}"
            raise InputError(f"is_liked of user {user!r} is {is_liked!r}; it must be true or false; {way_out}")
        rows.setdefault(user, []).append((_text(item), math.inf if is_liked else -math.inf))
    return {user: Feedback(history=history) for user, history in rows.items()}


def _feedback(user: object, content: Any) -> Feedback:
    if isinstance(content, Feedback):
        return content
    with contextlib.suppress(TypeError, ValueError, InputError):
        if isinstance(content, Mapping) and content.keys() <= {"liked", "disliked"}:
            return Feedback(_texts(content.get("liked", ())), _texts(content.get("disliked", ())))
        # "34" would be a pair of "3" and "4"
        is_list = isinstance(content, Sequence) and not isinstance(content, str)
        if is_list and not any(isinstance(pair, str) for pair in content):
            history = [(_text(item), float(relevance)) for item, relevance in content]
            if not any(math.isnan(relevance) for _, relevance in history):
                return Feedback(history=history)
    way_out = "give {'liked': [...], 'disliked': [...]} or [(item, relevance), ...]"
    raise InputError(f"the feedback of user {user!r} cannot be read; {way_out}")
