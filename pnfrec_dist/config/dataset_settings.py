"""Settings of a data set (conf/dataset/<name>.yaml): typed, frozen, each checked where it is defined."""

import dataclasses
import datetime
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.source_settings import NONE, SourceSettings, TitlesSettings
from pnfrec_dist.errors import require

MAX_UNDONE = 31
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
"""A label or a relevance that is a number."""


@dataclass(frozen=True)
class CleanSettings:
    """What happens to rows that cannot be read, and to repeated interactions."""

    max_quarantine_share: float = 0.01
    """largest share of unreadable rows, which go to quarantine/; above it the build fails"""
    duplicates: Literal["keep_all", "keep_first", "keep_last"] = "keep_all"
    """which rows are kept if a user has an item at several times (equal rows always collapse to one)"""
    earliest: str = "1990-01-01"
    """rows before this date count as unreadable; empty: no limit"""
    latest: str = "2100-01-01"
    """rows on or after this date count as unreadable; empty: no limit"""

    def __post_init__(self) -> None:
        require(
            0 <= self.max_quarantine_share < 1, "clean.max_quarantine_share", self.max_quarantine_share, "in [0, 1)"
        )
        for name in ("earliest", "latest"):
            value = getattr(self, name)
            require(value == "" or _is_date(value), f"clean.{name}", value, "a date such as 1990-01-01, or empty")
        ordered = not (self.earliest and self.latest) or self.earliest < self.latest
        require(ordered, "clean.latest", self.latest, f"after clean.earliest {self.earliest}")


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def label_value(label: str) -> str | float:
    """What labels are compared by: the number if it is one, so that 1 and 1.0 are equal, else lower-case text."""
    text = label.strip().lower()
    return float(text) if re.fullmatch(NUMBER, text) else text


@dataclass(frozen=True)
class FeedbackSettings:
    """What counts as positive."""

    threshold: float | Literal["median", "quantile", "labels"] = "median"
    """positive if relevance >= this number, the median or a quantile of train's relevances, or by its label"""
    quantile: float | None = None
    """for threshold: quantile; which quantile, in [0, 1]; the nearest observed relevance is taken"""
    positive_labels: tuple[str, ...] = ()
    """for threshold: labels; values of the relevance column that are positive (case is ignored; 1 equals 1.0)"""
    negative_labels: tuple[str, ...] = ()
    """for threshold: labels; values that are negative; others are unreadable. Empty: every other value is negative"""
    positive: str = ""
    """instead of the relevance: which rows are likes, as a condition in Spark SQL over the source's columns, such as
    event = 'like' or played >= 0.8"""
    negative: str = ""
    """with positive: which rows are dislikes, as a condition; rows that are neither are left out. Empty: all others"""
    undone: tuple[str, ...] = ()
    """with positive: rows (as conditions) that a later one of the same user and item takes back: event = 'like'"""
    undone_by: tuple[str, ...] = ()
    """the rows that take them back, one condition for each of undone, such as event = 'unlike'"""

    def __post_init__(self) -> None:
        rule = self.threshold
        finite = isinstance(rule, str) or math.isfinite(rule)
        require(finite, "feedback.threshold", rule, "a finite number, 'median', 'quantile' or 'labels'")
        if rule == "quantile":
            ok = self.quantile is not None and 0 <= self.quantile <= 1
            require(ok, "feedback.quantile", self.quantile, "in [0, 1], because feedback.threshold is 'quantile'")
        else:
            require(self.quantile is None, "feedback.quantile", self.quantile, "left out: threshold is not 'quantile'")
        if rule == "labels":
            way_out = "at least one label, because feedback.threshold is 'labels'"
            require(bool(self.positive_labels), "feedback.positive_labels", self.positive_labels, way_out)
        else:
            for name in ("positive_labels", "negative_labels"):
                labels = getattr(self, name)
                require(not labels, f"feedback.{name}", labels, "left out, unless feedback.threshold is 'labels'")
        for name in ("negative", "undone"):
            unused = bool(self.positive) or not getattr(self, name)
            require(unused, f"feedback.{name}", getattr(self, name), "left out, unless feedback.positive is given")
        rules = not self.positive or rule == FeedbackSettings.threshold
        require(rules, "feedback.threshold", rule, "left out, because feedback.positive says which rows are likes")
        pairs = len(self.undone) == len(self.undone_by)
        require(pairs, "feedback.undone_by", self.undone_by, "one condition for each of feedback.undone")
        require(len(self.undone) <= MAX_UNDONE, "feedback.undone", self.undone, f"at most {MAX_UNDONE} conditions")
        both = set(map(label_value, self.positive_labels)) & set(map(label_value, self.negative_labels))
        require(not both, "feedback.negative_labels", self.negative_labels, "different from feedback.positive_labels")


@dataclass(frozen=True)
class FilterSettings:
    """Support filter: items first, then users."""

    min_users_per_item: int = 5
    """items with fewer distinct users are dropped"""
    min_items_per_user: int = 5
    """then users with fewer distinct items are dropped"""
    iterate: bool = False
    """repeat both passes until nothing changes"""
    scope: Literal["train", "all"] = "train"
    """which interactions are counted: those before T (no later row can change train), or all (as in the paper)"""

    def __post_init__(self) -> None:
        require(self.min_users_per_item >= 0, "filter.min_users_per_item", self.min_users_per_item, ">= 0")
        require(self.min_items_per_user >= 0, "filter.min_items_per_user", self.min_items_per_user, ">= 0")


@dataclass(frozen=True)
class SplitSettings:
    """Global temporal split. The holdout users are then halved into validation and test."""

    holdout: Literal["newest", "none"] = "newest"
    """what is held out: the newest interactions, from T on; none: all interactions train, for the model that goes out
    (pnfrec train --final); there are no validation and no test users then"""
    quantile: float = 0.9
    """T is this quantile of all timestamps (nearest observed value); train: < T, holdout: >= T"""
    assignment: Literal["permutation", "hash"] = "hash"
    """how holdout users are halved: a seeded permutation of the sorted ids, or a seeded hash of each id"""
    seed: int = 42
    """seed of the assignment"""
    min_positives: int = 2
    """positives that a user needs in train, and a validation or test user also in the holdout; 0: no minimum"""

    def __post_init__(self) -> None:
        require(0 < self.quantile < 1, "split.quantile", self.quantile, "in (0, 1)")
        require(0 <= self.seed < 2**32, "split.seed", self.seed, "in [0, 2^32)")
        require(self.min_positives >= 0, "split.min_positives", self.min_positives, ">= 0")


@dataclass(frozen=True)
class ExpectedSettings:
    """Known numbers of a build from the official file (such as the paper's Table 1). None: not compared."""

    rows: int | None = None
    """rows of the official file"""
    users: int | None = None
    """users after the filter"""
    items: int | None = None
    """items after the filter, or those of them that occur in train"""
    actions: int | None = None
    """interactions after the filter"""
    negative_percent: int | None = None
    """percentage of these interactions that is negative, rounded"""


@dataclass(frozen=True)
class DatasetSettings:
    """One data set: conf/dataset/<name>.yaml."""

    source: SourceSettings = field(default_factory=SourceSettings)
    titles: TitlesSettings = field(default_factory=TitlesSettings)
    clean: CleanSettings = field(default_factory=CleanSettings)
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    expected: ExpectedSettings = field(default_factory=ExpectedSettings)
    max_history: int = 200
    """how many of its newest entries each list column keeps (seen_items keeps all, before_* up to twice as many)"""
    shard_mb: int = 64
    """approximate size of a shard in MB"""

    def __post_init__(self) -> None:
        require(self.max_history >= 2, "max_history", self.max_history, ">= 2")
        require(self.shard_mb >= 1, "shard_mb", self.shard_mb, ">= 1")
        no_relevance = self.source.relevance == NONE
        by_condition = bool(self.feedback.positive)
        unused = not no_relevance or by_condition or self.feedback == FeedbackSettings()
        require(unused, "feedback.threshold", self.feedback.threshold, "left out, because source.relevance is none")
        relevance = self.source.relevance
        unused = not by_condition or relevance in (NONE, SourceSettings.relevance)
        require(unused, "source.relevance", relevance, "left out, because feedback.positive says which rows are likes")

    def reading(self) -> SourceSettings:
        """The source as it is read: without the relevance, if conditions say which rows are likes."""
        return dataclasses.replace(self.source, relevance=NONE) if self.feedback.positive else self.source

    def conditions(self) -> dict[str, str]:
        """The conditions in Spark SQL, by setting."""
        feedback = self.feedback
        named = {"source.where": self.source.where, "feedback.positive": feedback.positive}
        named["feedback.negative"] = feedback.negative
        for name in ("undone", "undone_by"):
            named |= {f"feedback.{name}[{place}]": text for place, text in enumerate(getattr(feedback, name))}
        return {name: text for name, text in named.items() if text}

    def prepared(self) -> dict[str, Any]:
        """The settings that determine the content of the prepared data set."""
        mapping = to_mapping(self)
        kept = {name: mapping[name] for name in ("source", "titles", "clean", "feedback", "filter", "split")}
        for section, name in (
            *(("source", name) for name in ("directory", "url", "md5", "generator")),
            ("clean", "max_quarantine_share"),
        ):
            del kept[section][name]
        if self.split.holdout == SplitSettings.holdout:  # data sets of before do not name it
            del kept["split"]["holdout"]
        return {**kept, "max_history": self.max_history, "shard_mb": self.shard_mb}
