"""Settings of the raw files of a data set: `source` and `titles` in conf/dataset/<name>.yaml."""

import re
from dataclasses import dataclass
from typing import Literal

from pnfrec_dist.errors import require

EPOCH_UNITS = ("s", "ms", "us", "ns")
"""Units of time since 1970-01-01 UTC."""
NUMBERS = "number"
"""Times that are numbers of a clock of the source's own."""
NONE = "none"
"""Instead of a column: the source does not have it."""


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
    if "D" in letters and letters & set("ML"):
        return "the day of the month is dd; DD is the day of the year"
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
