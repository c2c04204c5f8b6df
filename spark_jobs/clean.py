"""Rows as read -> typed interactions; what cannot be read -> quarantine; equal rows collapse.

Every row read is kept, quarantined with its reason, or counted as a duplicate.
"""

import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, DoubleType, FloatType, StringType, TimestampNTZType, TimestampType

from pnfrec_dist.config import EPOCH_UNITS, DatasetSettings, FeedbackSettings, SourceSettings
from spark_jobs.sources import FILE_SHIFT, HEADER_AGAIN, RawFile, position

INTERACTION = ("raw_user_id", "raw_item_id", "relevance", "timestamp")
BLANKS = " \t\u00a0"
POSITIVE_LABEL, NEGATIVE_LABEL = 1.0, 0.0
TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}
"""How many of a unit are in a second."""


def timestamp_unit(rows: DataFrame, source: SourceSettings) -> str:
    """The unit that timestamps are kept in, so that nothing of their order is lost: "s", "ms" or "us"."""
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
    source = settings.source
    user, item = (_raw_id(rows, role) for role in ("user", "item"))
    relevance, not_relevance = _relevance(F.col("relevance"), settings.feedback, source.relevance)
    unit = timestamp_unit(rows, source)
    timestamp, not_time = _timestamp(rows, source, unit)
    reason = F.coalesce(
        F.col("problem"),
        F.when(user.isNull() | (user == ""), F.lit(f"{source.user} is empty")),
        F.when(~F.is_valid_utf8(user), F.lit(f"{source.user} is not valid UTF-8")),
        F.when(item.isNull() | (item == ""), F.lit(f"{source.item} is empty")),
        F.when(~F.is_valid_utf8(item), F.lit(f"{source.item} is not valid UTF-8")),
        not_relevance,
        not_time,
        _outside(timestamp, settings, unit),
    )
    # position depends on Spark's counting of rows, so that no filter moves below this select: without that, the
    # optimizer copies the parsing into the condition of every filter on `reason` (20 M rows: 200 s for 25 s).
    return rows.select(
        user.alias("raw_user_id"),
        item.alias("raw_item_id"),
        relevance.alias("relevance"),
        timestamp.alias("timestamp"),
        position(source).alias("position"),
        "line",
        reason.alias("reason"),
    )


def _raw_id(rows: DataFrame, role: str) -> Column:
    """An id as text without blanks around it. Whole numbers in a column of fractions (it once held gaps) stay whole."""
    value = F.col(role)
    if isinstance(rows.schema[role].dataType, FloatType | DoubleType):
        whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
        text = F.when(whole, value.try_cast("bigint").cast("string")).otherwise(value.cast("string"))
        return F.when(~F.isnan(value), text)
    return F.btrim(value.cast("string"), F.lit(BLANKS))


def _relevance(value: Column, feedback: FeedbackSettings, name: str) -> tuple[Column, Column]:
    """(relevance, reason why it is none)."""
    text = F.trim(value.cast("string"))
    empty = F.when(text.isNull() | (text == ""), F.lit(f"{name} is empty"))
    if feedback.threshold == "labels":
        label = F.lower(text)
        positive = label.isin([v.lower() for v in feedback.positive_labels])
        known = label.isin([v.lower() for v in feedback.negative_labels]) if feedback.negative_labels else F.lit(True)
        score = F.when(positive, F.lit(POSITIVE_LABEL)).when(known, F.lit(NEGATIVE_LABEL))
        return score, F.coalesce(empty, F.when(score.isNull(), F.lit(f"{name} is no label that the settings name")))
    number = value.try_cast("double")
    # Java reads 5d and 5f as 5, and 0x1p3 as 8.
    java_only = F.lower(F.right(text, F.lit(1))).isin("d", "f") & ~F.lower(text).endswith("inf")
    java_only = java_only | F.lower(text).contains("x")
    not_number = F.when(number.isNull() | java_only, F.lit(f"{name} is not a number"))
    not_finite = F.when(F.isnan(number) | (F.abs(number) == float("inf")), F.lit(f"{name} is not finite"))
    return number, F.coalesce(empty, not_number, not_finite)


def _timestamp(rows: DataFrame, source: SourceSettings, unit: str) -> tuple[Column, Column]:
    """(timestamp in `unit`, reason why it is none)."""
    value, kind, name = F.col("timestamp"), rows.schema["timestamp"].dataType, source.timestamp
    empty = F.when(value.isNull() | (F.trim(value.cast("string")) == ""), F.lit(f"{name} is empty"))
    if isinstance(kind, TimestampType | TimestampNTZType | DateType):
        ticks = _ticks(value.cast("timestamp"), unit)
        return ticks, empty
    if isinstance(kind, StringType) and source.time_format not in EPOCH_UNITS:
        pattern = [] if source.time_format == "iso" else [F.lit(source.time_format)]
        ticks = _ticks(F.try_to_timestamp(F.trim(value), *pattern), unit)
        if source.time_format == "iso":  # a time of day alone would be one of today
            ticks = F.when(F.trim(value).rlike(r"^\d{4}-\d{2}-\d{2}"), ticks)
        return ticks, F.coalesce(empty, F.when(ticks.isNull(), F.lit(f"{name} is no time like {source.time_format}")))
    # A column that once held gaps is often written as 978300760.0, a whole number all the same.
    decimal = value.try_cast("decimal(38,9)")
    whole = F.when(decimal == F.floor(decimal), decimal.try_cast("bigint"))
    ticks = F.coalesce(value.try_cast("bigint"), whole)
    return ticks, F.coalesce(empty, F.when(ticks.isNull(), F.lit(f"{name} is not a whole number ({unit} since 1970)")))


def _ticks(time: Column, unit: str) -> Column:
    return F.unix_micros(time) if unit == "us" else F.unix_seconds(time)


def _outside(timestamp: Column, settings: DatasetSettings, unit: str) -> Column:
    """The reason for timestamps outside the sane range, or null."""
    clean, name = settings.clean, settings.source.timestamp
    early = timestamp < epoch_ticks(clean.earliest, unit) if clean.earliest else F.lit(False)
    late = timestamp >= epoch_ticks(clean.latest, unit) if clean.latest else F.lit(False)
    return F.when(early, F.lit(f"{name} is before {clean.earliest}")).when(
        late, F.lit(f"{name} is not before {clean.latest}")
    )


def epoch_ticks(date: str, unit: str) -> int:
    """Midnight UTC of an ISO date as timestamp."""
    midnight = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC)
    return int(midnight.timestamp()) * TICKS[unit]


def rejected(typed: DataFrame, files: list[RawFile]) -> DataFrame:
    """The quarantine: source_file, row, reason, position. A file's own header, its first such line, is no row of it."""
    number = F.shiftright("position", FILE_SHIFT)
    bad = typed.where(F.col("reason").isNotNull()).withColumn("file_number", number)
    is_header = F.col("reason") == HEADER_AGAIN
    firsts = bad.where(is_header).groupBy("file_number").agg(F.min("position").alias("position")).select("position")
    names = typed.sparkSession.createDataFrame(
        [(n, f.name) for n, f in enumerate(files)], "file_number bigint, source_file string"
    )
    return (
        bad.join(F.broadcast(firsts), on="position", how="left_anti")
        .join(F.broadcast(names), on="file_number", how="inner")
        .select("source_file", F.col("line").alias("row"), "reason", "position")
    )


def accepted(typed: DataFrame, partitions: int) -> DataFrame:
    """The good rows: INTERACTION and position, all rows of a user in one of `partitions` partitions.

    Rows equal in all of INTERACTION collapse to the first. Everything later works within these partitions: this is the
    one shuffle of the whole log.
    """
    good = typed.where(F.col("reason").isNull()).select(*INTERACTION, "position")
    placed = good.repartition(partitions, "raw_user_id")
    return placed.groupBy(*INTERACTION).agg(F.min("position").alias("position"))
