"""Settings of a data set (conf/dataset/<name>.yaml): typed, frozen, each checked where it is defined."""

import dataclasses
import datetime
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.errors import require

MAX_UNDONE = 31
EPOCH_UNITS = ("s", "ms", "us", "ns")
"""Units of time since 1970-01-01 UTC."""
NUMBERS = "number"
"""Times that are numbers of a clock of the source's own."""
NONE = "none"
"""Instead of a column: the source does not have it."""
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
"""A label or a relevance that is a number."""


@dataclass(frozen=True)
class SourceSettings:
    """Where the raw interactions are, and the format of their files."""

    format: Literal["csv", "json", "parquet"] = "csv"
    """delimited text (csv, tsv, ...), one JSON object per line, or Parquet; text may be compressed (.gz, .bz2)"""
    files: str = "*.csv"
    """file name or glob, relative to the raw directory"""
    directory: str = ""
    """directory (or URI) of the raw files; empty: data/raw/<data set>; RAW (--raw) overrides it"""
    separator: str = ","
    """separator of the fields in a text line; may have more than one character"""
    quote: str = '"'
    """quote character of text fields; empty: none"""
    escape: str = ""
    """character before a quote inside a quoted field, such as a backslash; empty: the quote is doubled"""
    encoding: str = "utf-8"
    """of text files: utf-8, latin-1, cp1252, gb18030, ..."""
    header: bool = True
    """whether each text file starts with a line of column names"""
    fields: tuple[str, ...] = ()
    """column names of a text file without a header, in order"""
    user: str = "user"
    """column that holds the user id"""
    item: str = "item"
    """column that holds the item id"""
    relevance: str = "rating"
    """column that holds the relevance (a rating, a watched share, ...) or the label (liked, skipped, true, ...); none:
    there is none, and every row is a like"""
    item_separator: str = ""
    """text between the items, if the item column lists several (N1 N2), each of which is a row; empty: it has one"""
    relevance_separator: str = ""
    """with item_separator: text between an item and its relevance (N1-1 N2-0); empty: the relevance has a column"""
    timestamp: str = "timestamp"
    """column that holds the time; none: there is none (needs order: rows)"""
    order: Literal["time", "rows"] = "time"
    """rows: the interactions are in the order of the rows, file after file (sort_files); no time is read"""
    sort_files: Literal["path", "name"] = "path"
    """order of several files: by their path in the raw directory, or by their name without directories"""
    time_format: str = "s"
    """s, ms, us, ns: numbers since 1970-01-01 UTC; number: whole numbers of a clock of the source's own; iso: ISO 8601
    text; or a pattern such as yyyy-MM-dd HH:mm:ss"""
    where: str = ""
    """condition in Spark SQL over the columns, such as is_test = 0; only rows that meet it are read; empty: all"""
    url: str = ""
    """official file (zip, or the file itself) to download if no raw directory is given; empty: none"""
    md5: str = ""
    """md5 of the file at the url, as stated by its publisher; empty: not checked"""
    generator: Literal["", "synthetic"] = ""
    """generator of the raw files if no raw directory is given; empty: none"""

    def __post_init__(self) -> None:
        relative = self.files != "" and not self.files.startswith("/") and ".." not in self.files
        require(relative, "source.files", self.files, "a name or glob relative to the raw directory")
        require(self.separator != "", "source.separator", self.separator, "at least one character")
        require(len(self.quote) <= 1, "source.quote", self.quote, "one character or empty")
        require(len(self.escape) <= 1, "source.escape", self.escape, "one character or empty")
        escapes = not self.escape or (self.quote != "" and self.escape != self.quote)
        require(escapes, "source.escape", self.escape, "empty, unless source.quote is another character")
        require(_is_encoding(self.encoding), "source.encoding", self.encoding, "utf-8, latin-1, cp1252, gb18030, ...")
        listed = not self.item_separator or self.format != "parquet"
        require(listed, "source.item_separator", self.item_separator, "empty, because the format is parquet")
        paired = not self.relevance_separator or bool(self.item_separator)
        way_out = "empty, unless source.item_separator is given"
        require(paired, "source.relevance_separator", self.relevance_separator, way_out)
        by_rows = self.order == "rows"
        require(not by_rows or self.timestamp == NONE, "source.timestamp", self.timestamp, "none, as order is rows")
        way_out = "rows, because source.timestamp is none; the rows must be in the order of the interactions"
        require(by_rows or self.timestamp != NONE, "source.order", self.order, way_out)
        require(
            self.header or bool(self.fields) or self.format != "csv",
            "source.fields",
            self.fields,
            "the column names in order, because the file has no header (source.header: false)",
        )
        if self.time_format not in (*EPOCH_UNITS, NUMBERS, "iso"):
            fault = time_pattern_fault(self.time_format)
            what = f"s, ms, us, ns, number, iso, or a pattern such as yyyy-MM-dd HH:mm:ss; here, {fault}"
            require(not fault, "source.time_format", self.time_format, what)

    def columns(self) -> dict[str, str]:
        """The column of user, item, relevance and timestamp, by role; without those that the source does not have."""
        roles = ("user", "item", "relevance", "timestamp")
        named = {role: getattr(self, role) for role in roles}
        if self.relevance_separator:
            del named["relevance"]
        return {role: name for role, name in named.items() if name != NONE or role in ("user", "item")}


def _is_encoding(name: str) -> bool:
    """Whether it names a way to write text in which line ends and ASCII are single bytes."""
    try:
        return '\n,"09azAZ'.encode(name) == b'\n,"09azAZ'
    except (LookupError, UnicodeError):
        return False


def time_pattern_fault(pattern: str) -> str:
    """Why a pattern of letters, such as yyyy-MM-dd HH:mm:ss, does not give a date and a time; empty if it does."""
    letters = set(re.findall("[A-Za-z]", re.sub("'[^']*'", "", pattern)))
    if not letters & set("yu"):
        return "the year (yyyy) is missing"
    if not letters & set("ML") and "D" not in letters:
        return "the month (MM) is missing; mm are minutes" if "m" in letters else "the month (MM) is missing"
    if not letters & set("dD"):
        return "the day (dd) is missing"
    if letters & set("hK") and "a" not in letters:
        return "AM or PM (a) is missing; hours from 0 to 23 are HH, not hh"
    if "m" in letters and not letters & set("HhKk"):
        return "there are minutes (mm) without hours (HH); the month is MM"
    if "s" in letters and "m" not in letters:
        return "there are seconds (ss) without minutes (mm)"
    return "there is a fraction (S) without seconds (ss)" if "S" in letters and "s" not in letters else ""


@dataclass(frozen=True)
class TitlesSettings:
    """Where the items' titles are. Titles are shown to people who look at lists; no model uses them."""

    file: str = ""
    """delimited text file in the raw directory; empty: no titles"""
    separator: str = ","
    """separator of the fields in a line; may have more than one character"""
    quote: str = '"'
    """quote character of fields; empty: none"""
    encoding: str = "utf-8"
    """utf-8, latin-1, ..."""
    header: bool = True
    """whether the file starts with a line of column names"""
    fields: tuple[str, ...] = ()
    """column names of a file without a header, in order; columns after the last one need no name"""
    item: str = "item"
    """column that holds the item id, the same as in the interactions"""
    title: str = "title"
    """column that holds the title"""

    def __post_init__(self) -> None:
        relative = not self.file.startswith("/") and ".." not in self.file
        require(relative, "titles.file", self.file, "a name relative to the raw directory")
        require(self.separator != "", "titles.separator", self.separator, "at least one character")
        require(len(self.quote) <= 1, "titles.quote", self.quote, "one character or empty")
        named = self.header or not self.file or {self.item, self.title} <= set(self.fields)
        way_out = f"column names with {self.item} and {self.title} among them, because the file has no header"
        require(named, "titles.fields", self.fields, way_out)


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
    """how many of its newest entries each list column keeps (seen_items keeps all)"""
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
        return {**kept, "max_history": self.max_history, "shard_mb": self.shard_mb}
