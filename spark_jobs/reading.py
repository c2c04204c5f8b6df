"""Raw files -> interactions. Unreadable rows are counted and written to the quarantine; too many stop the build."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, Observation, Row, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import EPOCH_UNITS, DatasetSettings, label_value
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import file_size
from spark_jobs.clean import (
    INTERACTION,
    POSITIVE_LABEL,
    accepted,
    blank_ends,
    collapsed,
    rejected,
    spelled_with_zeros,
    typed_rows,
    unreadable,
    without_zeros,
)
from spark_jobs.file_hints import looks_like
from spark_jobs.quantile import BUCKETS, Bucket, bucket_of
from spark_jobs.raw_files import RawFile
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
    """see clean.accepted(); persisted"""
    times: list[Row]
    """see Reader.count_times()"""
    seen: dict[str, Any]
    """rows with a reason; fractions; for each of IDS, those spelled like 104.0; the commonest labels, and the likes"""


class Reader:
    """Reads the files of one build. warnings: what the user should know at the end."""

    def __init__(self, spark: SparkSession, settings: DatasetSettings, files: Sequence[RawFile], log: StageLog) -> None:
        self.spark, self.settings, self.files, self.log = spark, settings, list(files), log
        self.warnings: list[str] = []

    def read(self, partitions: int, building: Location) -> Readable:
        """Reads and cleans; writes the quarantine into `building`.

        Raises InputError if too many rows cannot be read, or if no row can.
        """
        source = self.settings.source
        self.log.say("reading", f"{len(self.files):,} files, {file_size(sum(f.bytes for f in self.files))}")
        if source.order == "time" and source.time_format not in (*EPOCH_UNITS, "iso"):
            require_pattern(self.spark, source.time_format)
        rows = read_rows(self.spark, self.files, source)
        unit = timestamp_unit(rows, source)
        parsed = self.pass_over(rows, unit, partitions)
        if parsed.seen["fractions"] and unit in FINER:
            parsed.interactions.unpersist()
            unit = FINER[unit]
            self.log.say("times", f"numbers with a fraction: kept in {unit}")
            parsed = self.pass_over(rows, unit, partitions)
        interactions, times = self.one_spelling(parsed, unit, partitions)
        kept, good = (sum(row[name] for row in times) for name in ("count", "copies"))
        entries, examples = self.quarantine(parsed.typed, parsed.seen["rows"], good, building)
        if good == 0:
            others = f" (and {len(self.files) - 1:,} more files)" if len(self.files) > 1 else ""
            way_out = "check RAW (--raw) and `source` in the YAML"
            raise InputError(f"no row of {self.files[0].location}{others} could be read as an interaction; {way_out}")
        if self.settings.feedback.threshold == "labels":
            labels = [(row["item"], row["count"]) for row in parsed.seen["labels"] if row["item"]]
            self.tell_labels(labels, parsed.seen["likes"])
        self.tell_future(times[-1]["high"], unit)
        self.log.done("deduplicated", rows=good - kept)
        buckets = [Bucket(row["low"], row["high"], row["count"]) for row in times]
        return Readable(interactions, good, unit, buckets, entries, examples)

    def pass_over(self, rows: DataFrame, unit: str, partitions: int) -> "Pass":
        """Parses and cleans all rows."""
        typed = typed_rows(rows, self.settings, unit)
        observed = Observation()
        wanted = [
            F.count("reason").alias("rows"),
            F.count_if("is_fraction").alias("fractions"),
            *(F.count_if(spelled_with_zeros(name)).alias(name) for name in IDS),
        ]
        if self.settings.feedback.threshold == "labels":
            wanted.append(F.expr(f"approx_top_k(label, {LABELS}, {100 * LABELS})").alias("labels"))
            wanted.append(F.count_if(F.col("relevance") == POSITIVE_LABEL).alias("likes"))
        seen = typed.select(*INTERACTION, "position", "reason", "label", "is_fraction").observe(observed, *wanted)
        interactions = accepted(seen, partitions).persist(StorageLevel.DISK_ONLY)
        times = self.count_times(interactions, unit)
        return Pass(typed, interactions, times, observed.get)

    def count_times(self, interactions: DataFrame, unit: str) -> list[Row]:
        """low, high, count and copies of all timestamps, in buckets, in order."""
        place = bucket_of("timestamp", *timestamp_range(self.settings.clean, unit), BUCKETS)
        ends = (F.min("timestamp").alias("low"), F.max("timestamp").alias("high"))
        counted = interactions.groupBy(place).agg(*ends, F.count("*").alias("count"), F.sum("copies").alias("copies"))
        return sorted(counted.collect(), key=lambda row: row["low"])

    def one_spelling(self, parsed: "Pass", unit: str, partitions: int) -> tuple[DataFrame, list[Row]]:
        """Ids that are whole numbers, in one spelling: 104.0 becomes 104 if all ids of the column are whole numbers.

        A column of whole numbers with a gap is often written as fractions, so one file has 104 and another 104.0.
        """
        interactions, times = parsed.interactions, parsed.times
        for name, column in zip(IDS, (self.settings.source.user, self.settings.source.item), strict=True):
            if not parsed.seen[name]:
                continue
            if interactions.agg(F.bool_and(F.col(name).rlike(r"^-?\d+(\.0+)?$"))).collect()[0][0]:
                before = interactions
                respelled = before.withColumn(name, without_zeros(name))
                interactions = collapsed(respelled, partitions).persist(StorageLevel.DISK_ONLY)
                times = self.count_times(interactions, unit)
                before.unpersist()
                self.log.say("ids", f"{column}: {parsed.seen[name]:,} whole numbers like 104.0 are read as 104")
                continue
            spelled = interactions.where(spelled_with_zeros(name)).select(F.col(name).alias("long"))
            pairs = spelled.distinct().withColumn(name, F.regexp_replace("long", r"\.0+$", ""))
            both = (
                pairs.join(interactions.select(name).distinct(), on=name, how="inner").orderBy(name).limit(1).collect()
            )
            for row in both:
                self.warnings.append(
                    f"{column} has {row[name]!r} and {row['long']!r}; they are kept as two ids, "
                    "because not all ids are whole numbers"
                )
        return interactions, times

    def tell_labels(self, found: list[tuple[str, int]], likes: int) -> None:
        """Says which labels occur, how often, and what they count as. Raises InputError if no row is positive.

        found: the commonest LABELS labels. likes: number of rows with a positive label, which need not be among them.
        """
        feedback, name = self.settings.feedback, self.settings.source.relevance
        sides: dict[str, list[str]] = {"positive": [], "negative": [], "no label": []}
        named = {label_value(text): "positive" for text in feedback.positive_labels}
        named |= {label_value(text): "negative" for text in feedback.negative_labels}
        other = "no label" if feedback.negative_labels else "negative"
        for text, count in found:
            sides[named.get(label_value(text), other)].append(f"{text} ({count:,})")
        if not likes:
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

    def tell_future(self, newest: int, unit: str) -> None:
        """Warns of times after today."""
        if unit != ROWS and newest > (time.time() + 86_400) * TICKS[unit]:
            name, text = self.settings.source.timestamp, date_of(newest, unit)
            self.warnings.append(f"the newest {name} is {text}, after today; check source.time_format")

    def quarantine(
        self, typed: DataFrame, with_reason: int, good: int, building: Location
    ) -> tuple[list[FileEntry], list[Example]]:
        """Counts and writes the rows that could not be read; parses again only if there are any.

        with_reason: the number of these rows and of the files' own headers.
        """
        source = self.settings.source
        own_headers = len(self.files) if source.format == "csv" and source.header else 0
        reasons: dict[str, int] = {}
        bad_rows = kept = unreadable(typed).persist(StorageLevel.DISK_ONLY)
        if with_reason != own_headers:
            reasons = {row["reason"]: row["count"] for row in bad_rows.groupBy("reason").count().collect()}
            reasons[HEADER_AGAIN] = reasons.get(HEADER_AGAIN, 0) - own_headers
            assert reasons[HEADER_AGAIN] >= 0, reasons
        if reasons.get(EMPTY_LINE):
            ends = settled(blank_ends(typed))
            reasons[EMPTY_LINE] -= ends.count()
            bad_rows = bad_rows.join(F.broadcast(ends), on="position", how="left_anti")
        reasons = {reason: count for reason, count in sorted(reasons.items()) if count}
        bad = sum(reasons.values())
        self.log.done("read", rows=good + bad)
        self.log.done("quarantined", rows=bad, **reasons)
        if not bad:
            return [write_no_quarantine(building)], []
        quarantine = rejected(bad_rows, self.files)
        first = quarantine.orderBy("position").limit(EXAMPLES).collect()
        examples = [(row["source_file"], row["row"], row["reason"]) for row in first]
        self.require_readable(good + bad, reasons, examples)
        entries = write_quarantine(quarantine, building, bad)
        kept.unpersist()
        return entries, examples

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
            way_out = f"check `source` in the YAML ({settings}){'; ' + hint if hint else ''}"
        raise InputError(
            f"{bad:,} of {read:,} rows ({bad / read:.2%}, allowed are {share:.2%}) could not be read: {common}; "
            f"{first}{'; then ' + others if others else ''}; {way_out}"
        )


def _round_up(share: float) -> float:
    """The next of 0.001, 0.01, 0.1, ... at or above a share, below 1."""
    return next((s for s in (0.001, 0.01, 0.1, 0.5, 0.9) if s >= share), 0.99)
