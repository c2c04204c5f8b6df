"""The whole preparation in plain pandas, from rows as they were meant: T, threshold, catalog, lists and targets.

Slow and simple. It shares no code with spark_jobs.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.config.dataset_settings import DatasetSettings, FilterSettings
from pnfrec_dist.data.schema import Manifest

Frame = Any
"""A DataFrame or Series: the type checker knows too little about what pandas returns."""
COLUMNS = ["user", "item", "relevance", "time"]


@dataclass
class Expected:
    """What a build must hold."""

    split: int
    threshold: float
    items: list[str]
    train: dict[str, dict[str, Any]] = field(default_factory=dict)
    """user -> lists, by column"""
    holdout: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """validation, test -> user -> lists and target"""
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """user of the holdout -> the lists before each of the newest max_history interactions from T on"""
    rows: int = 0
    """after the filter"""
    positives: int = 0


class TooSmallError(Exception):
    """The log has no train or no holdout."""


def expected_build(rows: Frame, settings: DatasetSettings) -> Expected:
    """rows: COLUMNS in the order of the source; relevance is 1 or 0 for labels and conditions. Raises TooSmallError.

    A column `undone` holds the time at which a later row takes this one back, or NaN. Rows that are no interactions are
    left out of `rows`.
    """
    if "undone" not in rows:
        rows = rows.assign(undone=np.nan)
    log = rows.reset_index(drop=True).assign(place=range(len(rows)))
    stays = log.assign(stays=log.undone.isna()).groupby(COLUMNS).stays.transform("any")
    log = log.assign(undone=log.undone.where(~stays)).drop_duplicates(COLUMNS)
    if settings.filter.scope == "all":
        items, users = support(log[log.undone.isna()], settings.filter)
        split = nearest(log[log.item.isin(items) & log.user.isin(users)].time, settings.split.quantile)
    else:
        split = nearest(log.time, settings.split.quantile)
        before = standing_at(log, split)
        items, users = support(before[before.time < split], settings.filter)
    log = without_repeats(standing_at(log, split), settings.clean.duplicates, split)
    log = log[log.item.isin(items) & log.user.isin(users)]
    train = log[log.time < split]
    if train.empty:
        raise TooSmallError
    threshold = threshold_of(train.relevance, settings)
    log = log.assign(liked=log.relevance >= threshold)
    catalog = natural(set(log[log.time < split].item))
    found = Expected(split, threshold, catalog, rows=len(log), positives=int(log.liked.sum()))
    log = log[log.item.isin(catalog)].sort_values(["time", "place"], kind="stable")
    histories = {str(user): history for user, history in log.groupby("user")}
    fill(found, histories, settings)
    return found


def standing_at(log: Frame, split: Any) -> Frame:
    """Without what was taken back on its own side of T. What only a row from T on takes back stays for train."""
    stays_in_train = (log.time < split) & (log.undone >= split)
    return log[log.undone.isna() | stays_in_train]


def nearest(values: Frame, quantile: float) -> Any:
    if values.empty:
        raise TooSmallError
    ordered = sorted(values)
    return ordered[round(quantile * (len(ordered) - 1))]


def support(log: Frame, settings: FilterSettings) -> tuple[set[str], set[str]]:
    """Items by distinct users, then users by distinct items among these."""
    while True:
        by_item = log.groupby("item").user.nunique()
        items = set(by_item[by_item >= settings.min_users_per_item].index)
        by_user = log[log.item.isin(items)].groupby("user").item.nunique()
        users = set(by_user[by_user >= settings.min_items_per_user].index)
        left = log[log.item.isin(items) & log.user.isin(users)]
        if not settings.iterate or len(left) == len(log):
            return items, users
        log = left


def without_repeats(log: Frame, rule: str, split: Any) -> Frame:
    """keep_last keeps one row before T and one from T on."""
    if rule == "keep_all":
        return log
    ordered = log.sort_values(["time", "place"])
    if rule == "keep_first":
        return ordered.drop_duplicates(["user", "item"], keep="first")
    return ordered.assign(side=ordered.time < split).drop_duplicates(["user", "item", "side"], keep="last")


def threshold_of(relevances: Frame, settings: DatasetSettings) -> float:
    rule = settings.feedback.threshold
    if rule == "labels" or settings.feedback.positive:
        return 0.5
    if rule == "median":
        return float(np.median(relevances))
    return float(nearest(relevances, settings.feedback.quantile or 0) if rule == "quantile" else rule)


def natural(ids: set[str]) -> list[str]:
    """As numbers if all are whole numbers, else as text (by their bytes)."""
    whole = all(raw.removeprefix("-").isascii() and raw.removeprefix("-").isdigit() for raw in ids)
    return sorted(ids, key=lambda raw: (int(raw), raw.encode()) if whole else (0, raw.encode()))


def lists(history: Frame, numbers: dict[str, int], most: int) -> dict[str, Any]:
    """The newest `most` of all, of the likes and of the dislikes."""
    coded = history.item.map(numbers)
    return {
        "items": coded[-most:].tolist(),
        "is_positive": history.liked[-most:].tolist(),
        "positive_items": coded[history.liked][-most:].tolist(),
        "negative_items": coded[~history.liked][-most:].tolist(),
    }


def past(history: Frame, end: int, rule: str) -> Frame:
    """What counts of the first `end` rows of a user: without those taken back, and by the rule for repeats."""
    earlier = history.iloc[:end]
    earlier = earlier[earlier.undone.isna()]
    return earlier[~earlier.item.duplicated(keep="last")] if rule == "keep_last" else earlier


def interactions(history: Frame, first: int, numbers: dict[str, int], most: int, rule: str) -> dict[str, Any]:
    """The columns of the interactions from row `first` of a user on, and of the lists before them."""
    before, later = past(history, first, rule), history.iloc[first:]
    stays = ~before.item.isin(later.item) if rule == "keep_last" else before.item == before.item

    def kept(rows: Frame) -> Frame:
        """Rows that fewer than `most` staying ones follow."""
        follow = stays[rows.index][::-1].cumsum()[::-1] - stays[rows.index]
        return rows[follow < most]

    def coded(rows: Frame) -> list[int]:
        return rows.item.map(numbers).tolist()

    return {
        "before_items": coded(kept(before)),
        "before_is_positive": kept(before).liked.tolist(),
        "before_positive_items": coded(kept(before[before.liked])),
        "before_negative_items": coded(kept(before[~before.liked])),
        "before_seen_items": sorted(set(coded(before))),
        "holdout_items": coded(later),
        "holdout_is_positive": later.liked.tolist(),
        "holdout_timestamps": later.time.astype(int).tolist(),
    }


def read_at(row: dict[str, Any], point: int, most: int, *, replaced_by: int) -> dict[str, Any]:
    """The lists before holdout interaction `point` of a prepared row, as a reader joins them.

    replaced_by: how many holdout interactions replace earlier ones with their items.
    """
    later = list(zip(row["holdout_items"], row["holdout_is_positive"], strict=True))[:point]
    gone = set(row["holdout_items"][:replaced_by])
    likes, dislikes = ([item for item, liked in later if liked == side] for side in (True, False))
    before = zip(row["before_items"], row["before_is_positive"], strict=True)
    both = [*((item, liked) for item, liked in before if item not in gone), *later][-most:]
    return {
        "items": [item for item, _ in both],
        "is_positive": [liked for _, liked in both],
        "positive_items": [*(i for i in row["before_positive_items"] if i not in gone), *likes][-most:],
        "negative_items": [*(i for i in row["before_negative_items"] if i not in gone), *dislikes][-most:],
        "seen_items": sorted({*row["before_seen_items"], *(item for item, _ in later)}),
    }


def require_points(row: dict[str, Any], points: list[dict[str, Any]], most: int, *, replaces: bool) -> None:
    """The lists before each holdout interaction are `points`. Those before the last one equal the row's own lists,
    which a target with keep_last has already changed."""
    assert len(row["holdout_items"]) == len(points)
    for point, wanted in enumerate(points):
        assert read_at(row, point, most, replaced_by=point if replaces else 0) == wanted
    last = read_at(row, len(points) - 1, most, replaced_by=len(points) if replaces else 0)
    if replaces:
        last["seen_items"] = [item for item in last["seen_items"] if item != row["target_item"]]
    assert last == {name: row[name] for name in last}
    assert (row["holdout_items"][-1], row["holdout_is_positive"][-1]) == (row["target_item"], row["target_is_positive"])


def fill(found: Expected, histories: dict[str, Frame], settings: DatasetSettings) -> None:
    """Train lists, and the lists and targets of validation and test users."""
    least, most = settings.split.min_positives, settings.max_history
    rule = settings.clean.duplicates
    numbers = {raw: number for number, raw in enumerate(found.items, 1)}
    holdout = []
    for user, history in histories.items():
        before = history[history.time < found.split]
        if before.empty:
            continue
        if before.liked.sum() >= least:
            found.train[user] = lists(before, numbers, most)
        if len(before) < len(history):
            holdout.append(user)
    if not found.train:
        raise TooSmallError
    ordered = natural(set(holdout))
    places = np.random.RandomState(settings.split.seed).permutation(len(ordered))
    tests = {ordered[place] for place in places[: -(-len(ordered) // 2)]}
    found.holdout = {"validation": {}, "test": {}}
    for user in holdout:
        history = histories[user]
        later = history[history.time >= found.split]
        target, earlier = history.iloc[-1], past(history, len(history) - 1, rule)
        if rule == "keep_last":
            earlier = earlier[earlier.item != target["item"]]
        if user not in found.train or later.liked.sum() < least:
            continue
        first = len(history) - min(len(later), most)
        if user in tests or target["liked"]:
            found.holdout["test" if user in tests else "validation"][user] = {
                **lists(earlier, numbers, most),
                "seen_items": sorted({numbers[raw] for raw in earlier["item"]}),
                "target_item": numbers[target["item"]],
                "target_is_positive": bool(target["liked"]),
                "target_timestamp": int(target["time"]),
                **interactions(history, first, numbers, most, rule),
            }
            pasts = [past(history, end, rule) for end in range(first, len(history))]
            found.points[user] = [
                lists(earlier, numbers, most) | {"seen_items": sorted({numbers[raw] for raw in earlier["item"]})}
                for earlier in pasts
            ]
    if not all(found.holdout.values()):
        raise TooSmallError


def lists_of(directory: Path, part: str) -> dict[str, dict[str, Any]]:
    """user -> the columns of a prepared part."""
    rows = [row for file in sorted((directory / part).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {row.pop("user_id"): row for row in rows}


def require_equal(directory: Path, manifest: Manifest, wanted: Expected) -> None:
    """The prepared data set in `directory` holds what is expected."""
    assert (manifest.split_timestamp, manifest.threshold) == (wanted.split, pytest.approx(wanted.threshold, abs=1e-12))
    assert pq.read_table(directory / "items.parquet")["raw_item_id"].to_pylist() == wanted.items
    assert manifest.counts["filtered"]["rows"] == wanted.rows
    assert manifest.counts["filtered"]["positives"] == wanted.positives
    assert lists_of(directory, "train") == wanted.train
    most, replaces = manifest.settings["max_history"], manifest.settings["clean"]["duplicates"] == "keep_last"
    for part, users in wanted.holdout.items():
        found = lists_of(directory, part)
        assert found == users, part
        for user, row in found.items():
            require_points(row, wanted.points[user], most, replaces=replaces)
        assert manifest.counts[part]["holdout_interactions"] == sum(len(row["holdout_items"]) for row in found.values())
