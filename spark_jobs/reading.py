"""Raw files -> interactions. Unreadable rows are counted and written to the quarantine; too many stop the build."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, Observation, Row, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import DatasetSettings, label_value
from pnfrec_dist.config.source_settings import EPOCH_UNITS, NUMBERS
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import counted, file_size
from spark_jobs.clean import (
    INTERACTION,
    NEITHER,
    UNDOING,
    UNWANTED,
    blank_ends,
    rejected,
    spelled_with_zeros,
    typed_rows,
    unreadable,
)
from spark_jobs.feedback import NEGATIVE_LABEL, POSITIVE_LABEL
from spark_jobs.file_hints import looks_like
from spark_jobs.quantile import BUCKETS, Bucket, bucket_of
from spark_jobs.raw_files import RawFile, in_order
from spark_jobs.repeats import accepted
from spark_jobs.row_counts import RowCounts
from spark_jobs.sources import read_rows
from spark_jobs.stage_log import StageLog
from spark_jobs.text_rows import EMPTY_LINE, HEADER_AGAIN
from spark_jobs.times import FINER, ROWS, TICKS, date_of, require_pattern, timestamp_range, timestamp_unit
from spark_jobs.transforms import settled
from spark_jobs.writer import write_no_quarantine, write_quarantine

IDS = ("raw_user_id", "raw_item_id")
LABELS = 20
"""Most different labels that are told."""
EXAMPLES = 5
Example = tuple[str, str, str]
"""(file, row, reason) of a row that could not be read."""


@dataclass(frozen=True)
class Readable:
    """The result of reading: interactions, and the quarantine."""

    interactions: DataFrame
    """the good rows after equal ones collapsed, all rows of a user in one partition; persisted"""
    rows: int
    """number of good rows, before equal ones collapsed"""
    unit: str
    """unit of the timestamps"""
    times: list[Bucket]
    """counts of all timestamps, in order"""
    quarantine: list[FileEntry]
    examples: list[Example]
    """the first rows that could not be read"""


@dataclass(frozen=True)
class Pass:
    """The result of parsing and cleaning all rows once."""

    typed: DataFrame
    """all rows, see clean.typed_rows(); not persisted"""
    interactions: DataFrame
    """see repeats.accepted(); persisted"""
    times: list[Row]
    """see Reader.count_times()"""
    unit: str
    """of the timestamps"""
    seen: dict[str, Any]
    """rows with a reason; fractions; for each of IDS, those spelled like 104.0; rows left out, by why; likes, dislikes
    and the commonest labels"""


@dataclass(frozen=True)
class Rejected:
    """The rows that could not be read, and where to write them."""

    rows: DataFrame | None
    """see clean.rejected; None if there are none"""
    building: Location


class Reader:
    """Reads the files of one build. warnings: what the user should know at the end."""

    def __init__(self, spark: SparkSession, settings: DatasetSettings, files: Sequence[RawFile], log: StageLog) -> None:
        self.spark, self.settings, self.log = spark, settings, log
        self.files = in_order(files, settings.source.sort_files)
        self.warnings: list[str] = []

    @property
    def titles(self) -> Location:
        """The file with the items' titles, if there is one."""
        return self.files[0].directory / self.settings.titles.file

    def read(self, partitions: int, building: Location) -> Readable:
        """Reads and cleans; writes the quarantine into `building`.

        Raises InputError if too many rows cannot be read, or if no row can.
        """
        rows = self.opened()
        parsed = self.parsed(rows, timestamp_unit(rows, self.settings.reading()), partitions)
        counts, rejected = self.counted(parsed)
        respelled = self.one_spelling(parsed.interactions, counts)
        if respelled:
            parsed.interactions.unpersist()
            parsed = self.pass_over(rows, parsed.unit, partitions, respelled)
        return self.readable(parsed.interactions, parsed.times, parsed.unit, counts, Rejected(rejected, building))

    def opened(self, *, is_first: bool = True) -> DataFrame:
        """The rows of the files, see read_rows(). is_first: see there."""
        source = self.settings.reading()
        if source.order == "rows":
            self.tell_order()
        self.log.say("reading", f"{counted(len(self.files), 'file')}, {file_size(sum(f.bytes for f in self.files))}")
        if source.order == "time" and source.time_format not in (*EPOCH_UNITS, NUMBERS, "iso"):
            require_pattern(self.spark, source.time_format)
        return read_rows(self.spark, self.files, source, self.settings.conditions(), is_first=is_first)

    def parsed(self, rows: DataFrame, unit: str, partitions: int) -> Pass:
        """pass_over() in this unit, or in a finer one if numbers have a fraction."""
        parsed = self.pass_over(rows, unit, partitions)
        if not parsed.seen["fractions"] or unit not in FINER:
            return parsed
        parsed.interactions.unpersist()
        self.log.say("times", f"numbers with a fraction: kept in {FINER[unit]}")
        return self.pass_over(rows, FINER[unit], partitions)

    def readable(
        self, interactions: DataFrame, times: list[Row], unit: str, counts: RowCounts, rejected: "Rejected"
    ) -> Readable:
        """Tells what was read, and writes the quarantine. Raises InputError as read() does."""
        good, kept = (sum(row[name] for row in times) for name in ("copies", "count"))
        entries, examples = self.quarantine(counts, good, rejected)
        if self.settings.source.where:
            self.log.done("where", rows=counts.left_out[UNWANTED])
            if not good and counts.left_out[UNWANTED]:
                where = self.settings.source.where
                raise InputError(f"no row meets source.where {where!r}; {counts.left_out[UNWANTED]:,} rows were read")
        if self.settings.feedback.positive:
            self.tell_conditions(counts)
        if good == 0:
            others = f" (and {len(self.files) - 1:,} more files)" if len(self.files) > 1 else ""
            way_out = "check RAW (--raw) and `source` in the YAML"
            raise InputError(f"no row of {self.files[0].location}{others} could be read as an interaction; {way_out}")
        if self.settings.feedback.threshold == "labels":
            self.tell_labels(counts)
        self.tell_future(times[-1]["high"], unit)
        self.log.done("deduplicated", rows=good - kept)
        buckets = [Bucket(row["low"], row["high"], row["count"]) for row in times]
        return Readable(interactions, good, unit, buckets, entries, examples)

    def pass_over(self, rows: DataFrame, unit: str, partitions: int, respelled: Sequence[str] = ()) -> "Pass":
        """Parses and cleans all rows. respelled: those of IDS whose 104.0 is 104."""
        feedback = self.settings.feedback
        typed = typed_rows(rows, self.settings, unit, respelled)
        observed = Observation()
        wanted = [
            F.count("reason").alias("rows"),
            F.count_if("is_fraction").alias("fractions"),
            *(F.count_if(spelled_with_zeros(F.col(name))).alias(name) for name in IDS),
            *(F.count_if(F.col("left_out") == why).alias(why) for why in (UNWANTED, NEITHER)),
        ]
        is_good = F.col("reason").isNull() & F.col("left_out").isNull()
        if feedback.threshold == "labels":
            wanted.append(F.expr(f"approx_top_k(label, {LABELS}, {100 * LABELS})").alias("labels"))
        if feedback.positive or feedback.threshold == "labels":
            wanted.append(F.count_if(is_good & (F.col("relevance") == POSITIVE_LABEL)).alias("likes"))
            wanted.append(F.count_if(is_good & (F.col("relevance") == NEGATIVE_LABEL)).alias("dislikes"))
            wanted.append(F.count_if(is_good & F.col("relevance").isNull()).alias("undo_only"))
        rules = [(name, place) for name in UNDOING for place in range(len(feedback.undone))]
        for name, place in rules:
            wanted.append(F.count_if(F.getbit(name, F.lit(place)) == 1).alias(f"{name} {place}"))
        columns = (*INTERACTION, *UNDOING, "position", "reason", "left_out", "label", "is_fraction")
        interactions = accepted(typed.select(*columns).observe(observed, *wanted), partitions, len(feedback.undone))
        interactions = interactions.persist(StorageLevel.DISK_ONLY)
        times = self.count_times(interactions, unit)
        found = dict(observed.get)
        found["left_out"] = {why: found.pop(why) for why in (UNWANTED, NEITHER)}
        found["left_out"][NEITHER] += found.get("undo_only", 0)
        return Pass(typed, interactions, times, unit, found)

    def count_times(self, interactions: DataFrame, unit: str) -> list[Row]:
        """low, high, count and copies of all timestamps, in buckets, in order."""
        place = bucket_of("timestamp", *timestamp_range(self.settings.clean, unit), BUCKETS)
        ends = (F.min("timestamp").alias("low"), F.max("timestamp").alias("high"))
        counted = interactions.groupBy(place).agg(*ends, F.count("*").alias("count"), F.sum("copies").alias("copies"))
        return sorted(counted.collect(), key=lambda row: row["low"])

    def one_spelling(self, interactions: DataFrame, counts: RowCounts) -> list[str]:
        """Those of IDS whose 104.0 is to be spelled 104, because all ids of the column are whole numbers.

        A column of whole numbers with a gap is often written as fractions, so one file has 104 and another 104.0.
        """
        found = []
        for name, column in zip(IDS, (self.settings.source.user, self.settings.source.item), strict=True):
            if not counts.with_zeros[name]:
                continue
            if interactions.agg(F.bool_and(F.col(name).rlike(r"^-?\d+(\.0+)?$"))).collect()[0][0]:
                found.append(name)
                self.log.say("ids", f"{column}: {counts.with_zeros[name]:,} whole numbers like 104.0 are read as 104")
                continue
            spelled = interactions.where(spelled_with_zeros(F.col(name))).select(F.col(name).alias("long"))
            pairs = spelled.distinct().withColumn(name, F.regexp_replace("long", r"\.0+$", ""))
            both = (
                pairs.join(interactions.select(name).distinct(), on=name, how="inner").orderBy(name).limit(1).collect()
            )
            for row in both:
                self.warnings.append(
                    f"{column} has {row[name]!r} and {row['long']!r}; they are kept as two ids, "
                    "because not all ids are whole numbers"
                )
        return found

    def tell_conditions(self, counts: RowCounts) -> None:
        """Says how many rows are likes, dislikes and neither. Raises InputError if no row is a like."""
        feedback, neither = self.settings.feedback, counts.left_out[NEITHER]
        self.log.done(NEITHER, rows=neither)
        text = f"{counts.likes:,} likes, {counts.dislikes:,} dislikes, {neither:,} rows are neither and are left out"
        self.log.say("feedback", text)
        if not counts.likes:
            raise InputError(f"no row meets feedback.positive {feedback.positive!r}; {text}")
        if not counts.dislikes and feedback.negative:
            self.warnings.append(f"no row meets feedback.negative {feedback.negative!r}")
        for name in UNDOING:
            for place, condition in enumerate(getattr(feedback, name)):
                if not counts.rules[f"{name} {place}"]:
                    self.warnings.append(f"no row meets feedback.{name} {condition!r}")

    def tell_labels(self, counts: RowCounts) -> None:
        """Says which labels occur, how often, and what they count as. Raises InputError if no row is positive.

        Only the commonest LABELS labels are known; those of the likes need not be among them.
        """
        found = sorted(counts.labels.items(), key=lambda pair: -pair[1])[:LABELS]
        feedback, name = self.settings.feedback, self.settings.source.relevance
        sides: dict[str, list[str]] = {"positive": [], "negative": [], "no label": []}
        named = {label_value(text): "positive" for text in feedback.positive_labels}
        named |= {label_value(text): "negative" for text in feedback.negative_labels}
        other = "no label" if feedback.negative_labels else "negative"
        for text, count in found:
            sides[named.get(label_value(text), other)].append(f"{text} ({count:,})")
        if not counts.likes:
            values = ", ".join(sides["negative"] + sides["no label"])
            positive = ", ".join(feedback.positive_labels)
            raise InputError(f"no row has a label of feedback.positive_labels ({positive}); {name} has {values}")
        told = "; ".join(f"{side}: {', '.join(texts)}" for side, texts in sides.items() if texts)
        self.log.say("labels", told)
        met = {label_value(text) for text, _ in found}
        unmet = [t for t in (*feedback.positive_labels, *feedback.negative_labels) if label_value(t) not in met]
        if unmet and len(found) < LABELS:
            self.warnings.append(f"no row has the label {', '.join(unmet)} (feedback.*_labels); {name} has {told}")
        if sides["no label"]:
            values = ", ".join(sides["no label"])
            self.warnings.append(f"these values of {name} are no label and were left out: {values}")

    def tell_order(self) -> None:
        """Warns of numbers in names of files whose order is not that of the numbers, such as 1, 10, 2."""
        names = [file.name for file in self.files]
        by_number = sorted(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        if by_number != names and len({re.sub(r"\d+", "", name) for name in names}) == 1:
            told = ", ".join(names[:4])
            self.warnings.append(f"the files are read in this order: {told}, ...; for another, fill numbers with zeros")

    def tell_future(self, newest: int, unit: str) -> None:
        """Warns of times after today."""
        if unit not in (ROWS, NUMBERS) and newest > (time.time() + 86_400) * TICKS[unit]:
            name, text = self.settings.source.timestamp, date_of(newest, unit)
            self.warnings.append(f"the newest {name} is {text}, after today; check source.time_format")

    def counted(self, parsed: "Pass") -> tuple[RowCounts, DataFrame | None]:
        """The counts of the rows, and those that could not be read (see clean.rejected): None if there are none.

        Parses again only if there may be any. What it persists stays so until the session ends.
        """
        source, typed, seen = self.settings.source, parsed.typed, parsed.seen
        own_headers = len(self.files) if source.format == "csv" and source.header else 0
        reasons: dict[str, int] = {}
        bad_rows = unreadable(typed).persist(StorageLevel.DISK_ONLY)
        if seen["rows"] != own_headers:
            reasons = {row["reason"]: row["count"] for row in bad_rows.groupBy("reason").count().collect()}
            reasons[HEADER_AGAIN] = reasons.get(HEADER_AGAIN, 0) - own_headers
            assert reasons[HEADER_AGAIN] >= 0, reasons
        if reasons.get(EMPTY_LINE):
            ends = settled(blank_ends(typed))
            reasons[EMPTY_LINE] -= ends.count()
            bad_rows = bad_rows.join(F.broadcast(ends), on="position", how="left_anti")
        counts = RowCounts(
            reasons={reason: count for reason, count in sorted(reasons.items()) if count},
            left_out=seen["left_out"],
            with_zeros={name: seen[name] for name in IDS},
            likes=seen.get("likes", 0),
            dislikes=seen.get("dislikes", 0),
            labels={row["item"]: row["count"] for row in seen.get("labels", []) if row["item"]},
            rules={name: count for name, count in seen.items() if name.startswith(UNDOING[0])},
        )
        return counts, rejected(bad_rows, self.files) if counts.reasons else None

    def quarantine(self, counts: RowCounts, good: int, found: "Rejected") -> tuple[list[FileEntry], list[Example]]:
        """Writes the rows that could not be read, and logs their number."""
        bad, readable = sum(counts.reasons.values()), good + sum(counts.left_out.values())
        if not readable + bad:
            raise InputError(f"{self.files[0].location} has no rows; check RAW (--raw) and source.files")
        self.log.done("read", rows=readable + bad)
        self.log.done("quarantined", rows=bad, **counts.reasons)
        if found.rows is None:
            return [write_no_quarantine(found.building)], []
        first = found.rows.orderBy("position").limit(EXAMPLES).collect()
        examples = [(row["source_file"], row["row"], row["reason"]) for row in first]
        self.require_readable(readable + bad, counts.reasons, examples)
        return write_quarantine(found.rows, found.building, bad), examples

    def require_readable(self, read: int, reasons: dict[str, int], examples: Sequence[Example]) -> None:
        """Raises InputError with the first unreadable rows if their share exceeds max_quarantine_share."""
        share, bad = self.settings.clean.max_quarantine_share, sum(reasons.values())
        if bad / read <= share:
            return
        commonest = sorted(reasons.items(), key=lambda pair: -pair[1])[:3]
        common = ", ".join(f"{count:,} because {reason}" for reason, count in commonest)
        file, row, reason = examples[0]
        first = f"first in {file}: {row[:200]!r} ({reason})"
        others = "; ".join(f"{row[:80]!r} ({reason})" for _, row, reason in examples[1:3])
        way_out = f"correct them, or leave them out with --clean.max-quarantine-share {_round_up(bad / read)}"
        if bad / read > 0.5:
            hint = looks_like(self.files[0].location, self.settings.source)
            settings = "separator, header, columns, time_format"
            conditions = "the conditions and " if self.settings.conditions() else ""
            way_out = f"check {conditions}`source` in the YAML ({settings}){'; ' + hint if hint else ''}"
        raise InputError(
            f"{bad:,} of {read:,} rows ({bad / read:.2%}, allowed are {share:.2%}) could not be read: {common}; "
            f"{first}{'; then ' + others if others else ''}; {way_out}"
        )


def _round_up(share: float) -> float:
    """The next of 0.001, 0.01, 0.1, ... at or above a share, below 1."""
    return next((s for s in (0.001, 0.01, 0.1, 0.5, 0.9) if s >= share), 0.99)
