"""Cards for people: a user's last likes and dislikes, the user's list, and which items the user liked later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pnfrec_dist.config.inference_settings import RecommendSettings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.user_histories import UserLists, find_users
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import write_text
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.item_filters import read_filters
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.inference.trained_model import open_with_data

LAST = 5
"""Most likes, and most dislikes, on a card."""
USERS, LENGTH = 20, 10
"""Cards that a training writes: their number, and the length of their lists."""

Entry = tuple[str, float]
"""raw item id, score"""


@dataclass(frozen=True)
class Card:
    """The card of one user. Raw item ids: likes and dislikes newest first, lists best first."""

    user_id: str
    likes: list[str]
    dislikes: list[str]
    listed: list[Entry]
    """list from the user's whole history"""
    is_popular: bool
    """whether it has popular items, because the user has no known like"""
    listed_before: list[Entry]
    """list from the history before T; empty for a user who only has interactions before, or only after T"""
    later_likes: list[str]
    later_dislikes: list[str]


def cards(maker: ListMaker, raw_ids: pa.Array, users: UserLists) -> list[Card]:
    """The cards of some users, in their order. raw_ids: raw ids of the data set's catalog, starting at item 1."""
    now, before = maker.make(users), maker.make(before_split(users))
    found = []
    for row, user_id in enumerate(users.user_ids.to_pylist()):
        items, is_positive = users.items.row(row), users.is_positive.row(row)
        later = np.arange(len(items)) >= len(items) - users.num_holdout[row]
        listed, is_popular = _entries(now, user_id)
        has_both = later.any() and not later.all()
        card = Card(
            user_id=user_id,
            likes=_named(raw_ids, items[is_positive][-LAST:]),
            dislikes=_named(raw_ids, items[~is_positive][-LAST:]),
            listed=listed,
            is_popular=is_popular,
            listed_before=_entries(before, user_id)[0] if has_both else [],
            later_likes=_named(raw_ids, items[later & is_positive]),
            later_dislikes=_named(raw_ids, items[later & ~is_positive]),
        )
        found.append(card)
    return found


def show_cards(settings: RecommendSettings) -> int:
    """Prints the cards of settings.show. Raises InputError for users that are not in the data set."""
    trained, data = open_with_data(settings)
    filters = read_filters(trained, settings.allow, settings.deny, settings.deny_pairs)
    raw_ids = data.raw_item_ids()
    maker = ListMaker(trained, raw_ids, ListSettings.of(settings, trained), filters, torch.device("cpu"))
    wanted = pa.array(settings.show, pa.string())
    found = {card.user_id: card for users in find_users(data, wanted) for card in cards(maker, raw_ids, users)}
    if missing := [user for user in settings.show if user not in found]:
        raise InputError(f"--show: {data.directory} has no user {missing[0]!r}; give user ids of the source data")
    titles = data.titles()
    print("\n\n".join(card_text(found[user], titles) for user in dict.fromkeys(settings.show)))
    return 0


def write_cards(file: Path, trained: Exported, data: PreparedData) -> None:
    """Writes the cards of the first validation users by id."""
    wanted = data.user_ids("validation").sort().slice(0, USERS)
    raw_ids, titles = data.raw_item_ids(), data.titles()
    settings = ListSettings(LENGTH, gamma=trained.gamma(None), keep_seen=False, batch_size=USERS)
    maker = ListMaker(trained, raw_ids, settings, Filters(), torch.device("cpu"))
    found = [card for users in find_users(data, wanted) for card in cards(maker, raw_ids, users)]
    text = "\n\n".join(card_text(card, titles) for card in sorted(found, key=lambda card: card.user_id))
    write_text(file, text + "\n")


def before_split(users: UserLists) -> UserLists:
    """The users with their interactions before T, as far back as the lists reach."""
    rows = range(len(users))
    kept = [len(users.items.row(row)) - users.num_holdout[row] for row in rows]
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("items", "is_positive", "positive", "negative", "seen")
    }
    for row in rows:
        items, is_positive = users.items.row(row), users.is_positive.row(row)
        later, was_liked = items[kept[row] :], is_positive[kept[row] :]
        positive, negative, seen = (lists.row(row) for lists in (users.positive, users.negative, users.seen))
        columns["items"].append(items[: kept[row]])
        columns["is_positive"].append(is_positive[: kept[row]])
        columns["positive"].append(positive[: len(positive) - was_liked.sum()])
        columns["negative"].append(negative[: len(negative) - (~was_liked).sum()])
        columns["seen"].append(seen[~np.isin(seen, np.setdiff1d(later, items[: kept[row]]))])
    lists = {name: Ragged.of(values, bool if name == "is_positive" else np.int64) for name, values in columns.items()}
    return UserLists(users.user_ids, **lists, num_holdout=np.zeros_like(users.num_holdout))


def card_text(card: Card, titles: Mapping[str, str]) -> str:
    """titles: raw item id -> title, for items that have one."""
    lines = [f"user {card.user_id}"]
    for what, items in (("liked last", card.likes), ("disliked last", card.dislikes)):
        shown = "; ".join(_shown(item, titles) for item in items) or "nothing"
        lines.append(f"  {what:<14} {shown}")
    how = "of popular items, as no like is known" if card.is_popular else "from the whole history"
    lines.append(f"  list {how}")
    lines += _list_lines(card.listed, titles, {})
    if card.listed_before:
        marks = dict.fromkeys(card.later_dislikes, "disliked later") | dict.fromkeys(card.later_likes, "liked later")
        items = {item for item, _ in card.listed_before}
        counts = (
            f"{len(items & set(of))} of {len(set(of))} later {what}"
            for what, of in (("likes", card.later_likes), ("dislikes", card.later_dislikes))
        )
        lines.append(f"  list from before the split: has {' and '.join(counts)}")
        lines += _list_lines(card.listed_before, titles, marks)
    return "\n".join(lines)


def _list_lines(listed: Sequence[Entry], titles: Mapping[str, str], marks: Mapping[str, str]) -> list[str]:
    if not listed:
        return ["     (no item is left)"]
    names = [_shown(item, titles) for item, _ in listed]
    width = max(map(len, names))
    return [
        f"  {rank:>3}  {score:>8.3f}  {name:<{width}}  {marks.get(item, '')}".rstrip()
        for rank, (name, (item, score)) in enumerate(zip(names, listed, strict=True), 1)
    ]


def _shown(item: str, titles: Mapping[str, str]) -> str:
    return f"{titles[item]} [{item}]" if item in titles else item


def _entries(lists: pa.Table, user_id: str) -> tuple[list[Entry], bool]:
    """A user's list, and whether it has popular items."""
    rows = [row for row in lists.to_pylist() if row["user_id"] == user_id]
    return [(row["raw_item_id"], row["score"]) for row in rows], any(row["is_popular"] for row in rows)


def _named(raw_ids: pa.Array, items: np.ndarray) -> list[str]:
    return raw_ids.take(pa.array(items[::-1].astype(np.int64) - 1)).to_pylist()
