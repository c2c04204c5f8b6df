"""Turns rows as read into typed interactions; unreadable rows go to the quarantine, and equal rows collapse.

Every row is kept, quarantined with its reason, or counted as a duplicate.
"""

import datetime
import functools
import operator

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, DoubleType, FloatType, StringType, TimestampNTZType, TimestampType

from pnfrec_dist.config.dataset_settings import (
    EPOCH_UNITS,
    CleanSettings,
    DatasetSettings,
    FeedbackSettings,
    SourceSettings,
)
from spark_jobs.sources import FILE_SHIFT, HEADER_AGAIN, RawFile, position

INTERACTION = ("raw_user_id", "raw_item_id", "relevance", "timestamp")
BLANKS = " \t\u00a0"
POSITIVE_LABEL, NEGATIVE_LABEL = 1.0, 0.0
TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}
"""Units per second."""


def timestamp_unit(rows: DataFrame, source: SourceSettings) -> str:
    """The unit in which timestamps are kept ("s", "ms" or "us"): fine enough to preserve their order."""
    kind = rows.schema["timestamp"].dataType
    if isinstance(kind, TimestampType | TimestampNTZType):
        return "us"
    if isinstance(kind, DateType):
        return "s"
    if source.time_format in EPOCH_UNITS:
        return source.time_format
    return "us" if source.time_format == "iso" or "S" in source.time_format else "s"


def typed_rows(rows: DataFrame, settings: DatasetSettings) -> DataFrame:
    """Columns INTERACTION, position, line, and `reason` (null when the row is good).

    raw ids: non-empty text; relevance: finite double (a label: 1 positive, 0 negative); timestamp: bigint in
    timestamp_unit().
    """
    source, unit = settings.source, timestamp_unit(rows, settings.source)
    # In two steps, so that each value is parsed once; the reason is looked for only where parsing gave no value.
    values = rows.select(
        _raw_id(rows, "user").alias("raw_user_id"),
        _raw_id(rows, "item").alias("raw_item_id"),
        _relevance(settings.feedback).alias("relevance"),
        _timestamp(rows, source, unit).alias("timestamp"),
        F.col("relevance").alias("relevance_read"),
        F.col("timestamp").alias("timestamp_read"),
        # position depends on Spark's counting of rows, so no filter moves below this select. Otherwise the optimizer
        # copies the parsing into the condition of every filter on `reason` (20 M rows: 200 s instead of 25 s).
        position(source).alias("position"),
        "line",
        "problem",
    )
    reason = F.coalesce(
        F.col("problem"),
        _id_reason("raw_user_id", source.user, source),
        _id_reason("raw_item_id", source.item, source),
        _relevance_reason(values, settings.feedback, source.relevance),
        _timestamp_reason(source, unit),
        _range_reason(settings, unit),
    )
    return values.select(*INTERACTION, "position", "line", reason.alias("reason"))


def _raw_id(rows: DataFrame, role: str) -> Column:
    """An id as text without blanks around it. Floats that are whole numbers give an integer's text: 7.0 gives 7."""
    value = F.col(role)
    if isinstance(rows.schema[role].dataType, FloatType | DoubleType):
        whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
        text = F.when(whole, value.try_cast("bigint").cast("string")).otherwise(value.cast("string"))
        return F.when(~F.isnan(value), text)
    text = value.cast("string")
    has_blanks = functools.reduce(operator.or_, (text.startswith(blank) | text.endswith(blank) for blank in BLANKS))
    return F.when(has_blanks, F.btrim(text, F.lit(BLANKS))).otherwise(text)


def _id_reason(column: str, name: str, source: SourceSettings) -> Column:
    raw_id = F.col(column)
    reason = F.when(raw_id.isNull() | (raw_id == ""), F.lit(f"{name} is empty"))
    if source.format == "parquet":  # for text, the whole line was checked
        reason = reason.when(~F.is_valid_utf8(raw_id), F.lit(f"{name} is not valid UTF-8"))
    return reason


def _relevance(feedback: FeedbackSettings) -> Column:
    """The relevance as double (a label: 1 for positive, 0 for negative), or null if it cannot be read."""
    value = F.col("relevance")
    if feedback.threshold != "labels":
        return value.try_cast("double")
    label = F.lower(F.trim(value.cast("string")))
    positive = label.isin([v.lower() for v in feedback.positive_labels])
    known = label.isin([v.lower() for v in feedback.negative_labels]) if feedback.negative_labels else label != ""
    return F.when(positive, F.lit(POSITIVE_LABEL)).when(known, F.lit(NEGATIVE_LABEL))


def _relevance_reason(values: DataFrame, feedback: FeedbackSettings, name: str) -> Column:
    relevance, read = F.col("relevance"), F.col("relevance_read")
    missing = F.when(_is_empty(read), F.lit(f"{name} is empty"))
    if feedback.threshold == "labels":
        return F.when(relevance.isNull(), missing.otherwise(F.lit(f"{name} is no label that the settings name")))
    not_number = F.lit(f"{name} is not a number")
    reason = F.when(relevance.isNull(), missing.otherwise(not_number))
    reason = reason.when(F.isnan(relevance) | (F.abs(relevance) == float("inf")), F.lit(f"{name} is not finite"))
    if isinstance(values.schema["relevance_read"].dataType, StringType):
        # Java reads 5d and 5f as 5, and 0x1p3 as 8.
        java_only = functools.reduce(operator.or_, (read.contains(letter) for letter in "dDfFxX"))
        reason = reason.when(java_only, not_number)
    return reason


def _is_empty(read: Column) -> Column:
    return read.isNull() | (F.trim(read.cast("string")) == "")


def _timestamp(rows: DataFrame, source: SourceSettings, unit: str) -> Column:
    """The timestamp in `unit` as bigint, or null if it cannot be read."""
    value, kind = F.col("timestamp"), rows.schema["timestamp"].dataType
    if isinstance(kind, TimestampType | TimestampNTZType | DateType):
        return _ticks(value.cast("timestamp"), unit)
    if isinstance(kind, StringType) and source.time_format not in EPOCH_UNITS:
        pattern = [] if source.time_format == "iso" else [F.lit(source.time_format)]
        ticks = _ticks(F.try_to_timestamp(F.trim(value), *pattern), unit)
        if source.time_format == "iso":  # Spark would take a time of day alone as a time of today
            ticks = F.when(F.trim(value).rlike(r"^\d{4}-\d{2}-\d{2}"), ticks)
        return ticks
    # A column of whole numbers with gaps is often written as floats, such as 978300760.0.
    decimal = value.try_cast("decimal(38,9)")
    whole = F.when(decimal == F.floor(decimal), decimal.try_cast("bigint"))
    if isinstance(kind, DoubleType):
        return whole
    return F.coalesce(value.try_cast("bigint"), whole)


def _ticks(time: Column, unit: str) -> Column:
    return F.unix_micros(time) if unit == "us" else F.unix_seconds(time)


def _timestamp_reason(source: SourceSettings, unit: str) -> Column:
    name = source.timestamp
    no_time = f"{name} is no time like {source.time_format}"
    if source.time_format in EPOCH_UNITS:
        no_time = f"{name} is not a whole number ({unit} since 1970)"
    missing = F.when(_is_empty(F.col("timestamp_read")), F.lit(f"{name} is empty")).otherwise(F.lit(no_time))
    return F.when(F.col("timestamp").isNull(), missing)


def _range_reason(settings: DatasetSettings, unit: str) -> Column:
    """The reason for timestamps outside the allowed range, or null."""
    clean, name, timestamp = settings.clean, settings.source.timestamp, F.col("timestamp")
    early = timestamp < epoch_ticks(clean.earliest, unit) if clean.earliest else F.lit(False)
    late = timestamp >= epoch_ticks(clean.latest, unit) if clean.latest else F.lit(False)
    return F.when(early, F.lit(f"{name} is before {clean.earliest}")).when(
        late, F.lit(f"{name} is not before {clean.latest}")
    )


def timestamp_range(clean: CleanSettings, unit: str) -> tuple[int, int]:
    """The lowest and the highest timestamp that a good row may have."""
    low = epoch_ticks(clean.earliest, unit) if clean.earliest else -(2**63)
    return low, epoch_ticks(clean.latest, unit) - 1 if clean.latest else 2**63 - 1


def epoch_ticks(date: str, unit: str) -> int:
    """Midnight UTC of an ISO date as a timestamp in `unit`."""
    midnight = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC)
    return int(midnight.timestamp()) * TICKS[unit]


def date_of(timestamp: int, unit: str) -> str:
    """A timestamp as text, UTC."""
    try:
        return datetime.datetime.fromtimestamp(timestamp / TICKS[unit], datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "beyond the year 9999"


def unreadable(typed: DataFrame) -> DataFrame:
    """The rows with a reason: position, line, reason.

    With position in the select, the filter stays above the parsing (see typed_rows).
    """
    return typed.where(F.col("reason").isNotNull()).select("position", "line", "reason")


def rejected(bad_rows: DataFrame, files: list[RawFile]) -> DataFrame:
    """The quarantine from unreadable() rows: source_file, row, reason, position.

    The first header line of a file is its own header and is left out.
    """
    bad = bad_rows.withColumn("file_number", F.shiftright("position", FILE_SHIFT))
    is_header = F.col("reason") == HEADER_AGAIN
    firsts = bad.where(is_header).groupBy("file_number").agg(F.min("position").alias("position")).select("position")
    names = bad_rows.sparkSession.createDataFrame(
        [(n, f.name) for n, f in enumerate(files)], "file_number bigint, source_file string"
    )
    return (
        bad.join(F.broadcast(firsts), on="position", how="left_anti")
        .join(F.broadcast(names), on="file_number", how="inner")
        .select("source_file", F.col("line").alias("row"), "reason", "position")
    )


def accepted(typed: DataFrame, partitions: int) -> DataFrame:
    """The good rows: INTERACTION, position, copies. All rows of a user are in one partition, sorted by user and item.

    Rows equal in all of INTERACTION collapse to the first; copies is how many there were. All later steps use these
    partitions, and mostly their order: this is the only shuffle of the whole log.
    """
    good = typed.where(F.col("reason").isNull()).select(*INTERACTION, "position")
    placed = good.repartition(partitions, "raw_user_id")
    # Spark would plan two aggregations for a key of doubles; for a single number, xxhash64 is one-to-one.
    keys = ("raw_user_id", "raw_item_id", "timestamp", "bits")
    ordered = placed.withColumn("bits", F.xxhash64("relevance")).sortWithinPartitions(*keys)
    collapsed = ordered.groupBy(*keys).agg(
        F.first("relevance").alias("relevance"),
        F.min("position").alias("position"),
        F.count("*").cast("int").alias("copies"),
    )
    return collapsed.select(*INTERACTION, "position", "copies")
