"""Turns rows as read into typed interactions; unreadable rows go to the quarantine, and equal rows collapse.

Every row is kept, quarantined with its reason, or counted as a duplicate.
"""

import functools
import operator
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, DoubleType, FloatType, StringType

from pnfrec_dist.config.dataset_settings import NUMBER, DatasetSettings, FeedbackSettings, SourceSettings, label_value
from spark_jobs.raw_files import RawFile
from spark_jobs.sources import FILE_SHIFT, position
from spark_jobs.text_rows import EMPTY_LINE, HEADER_AGAIN
from spark_jobs.times import has_fraction, no_time_reason, parsed_time, range_reason

INTERACTION = ("raw_user_id", "raw_item_id", "relevance", "timestamp")
BLANKS = " \t\u00a0"
POSITIVE_LABEL, NEGATIVE_LABEL = 1.0, 0.0
NO_LABEL = "is no label that the settings name"


def typed_rows(rows: DataFrame, settings: DatasetSettings, unit: str) -> DataFrame:
    """Columns INTERACTION, position, line, `reason` (null when the row is good), label, and is_fraction.

    raw ids: non-empty text; relevance: finite double (a label: 1 positive, 0 negative); timestamp: bigint in `unit`.
    label: the label as read, if labels say what is positive; is_fraction: see times.has_fraction().
    """
    source = settings.source
    # In two steps, so that each value is parsed once; the reason is looked for only where parsing gave no value.
    values = rows.select(
        _raw_id(rows, "user").alias("raw_user_id"),
        _raw_id(rows, "item").alias("raw_item_id"),
        _relevance(rows, settings.feedback).alias("relevance"),
        parsed_time(rows, source, unit).alias("timestamp"),
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
        F.when(F.col("timestamp").isNull(), _empty(source.timestamp, "timestamp_read", no_time_reason(source))),
        range_reason(settings.clean, source.timestamp, unit),
    )
    by_label = settings.feedback.threshold == "labels"
    label = _label(F.col("relevance_read")) if by_label else F.lit(None).cast("string")
    return values.select(
        *INTERACTION,
        "position",
        "line",
        reason.alias("reason"),
        label.alias("label"),
        has_fraction(values, source).alias("is_fraction"),
    )


def _raw_id(rows: DataFrame, role: str) -> Column:
    """An id as text without blanks around it. Fractions that are whole numbers give an integer's text: 7.0 gives 7."""
    value, kind = F.col(role), rows.schema[role].dataType
    if isinstance(kind, DecimalType) and kind.scale > 0:
        return F.when(value == F.floor(value), F.floor(value).cast("string")).otherwise(value.cast("string"))
    if isinstance(kind, FloatType | DoubleType):
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


def _relevance(rows: DataFrame, feedback: FeedbackSettings) -> Column:
    """The relevance as double (a label: 1 for positive, 0 for negative), or null if it cannot be read.

    A float32 counts as its shortest decimal: 0.7, not 0.699999988079071.
    """
    value = F.col("relevance")
    if isinstance(rows.schema["relevance"].dataType, FloatType):
        value = value.cast("string")
    if feedback.threshold != "labels":
        return value.try_cast("double")
    label = _label(value)
    known = _is_one_of(label, feedback.negative_labels) if feedback.negative_labels else label != ""
    positive = _is_one_of(label, feedback.positive_labels)
    return F.when(positive, F.lit(POSITIVE_LABEL)).when(known, F.lit(NEGATIVE_LABEL))


def _label(value: Column) -> Column:
    return F.lower(F.trim(value.cast("string")))


def _is_one_of(label: Column, labels: Sequence[str]) -> Column:
    """Whether a label is one of some; numbers are compared as numbers."""
    values = [label_value(text) for text in labels]
    found = label.isin([value for value in values if isinstance(value, str)])
    numbers = [value for value in values if isinstance(value, float)]
    if numbers:
        found |= F.when(label.rlike(f"^{NUMBER}$"), label.try_cast("double").isin(numbers)).otherwise(F.lit(False))
    return found


def _relevance_reason(values: DataFrame, feedback: FeedbackSettings, name: str) -> Column:
    relevance, read = F.col("relevance"), F.col("relevance_read")
    if feedback.threshold == "labels":
        return F.when(relevance.isNull(), _empty(name, "relevance_read", f"{name} {NO_LABEL}"))
    not_number = f"{name} is not a number"
    reason = F.when(relevance.isNull(), _empty(name, "relevance_read", not_number))
    reason = reason.when(F.isnan(relevance) | (F.abs(relevance) == float("inf")), F.lit(f"{name} is not finite"))
    if isinstance(values.schema["relevance_read"].dataType, StringType):
        # Java reads 5d and 5f as 5, and 0x1p3 as 8.
        java_only = functools.reduce(operator.or_, (read.contains(letter) for letter in "dDfFxX"))
        reason = reason.when(java_only, F.lit(not_number))
    return reason


def _empty(name: str, column: str, otherwise: str) -> Column:
    """The reason for a value that cannot be read: it is empty, or another one."""
    read = F.col(column)
    is_empty = read.isNull() | (F.trim(read.cast("string")) == "")
    return F.when(is_empty, F.lit(f"{name} is empty")).otherwise(F.lit(otherwise))


def spelled_with_zeros(name: str) -> Column:
    """Whether an id is a whole number that is spelled with a fraction, such as 104.0."""
    return F.contains(F.col(name), F.lit(".")) & F.col(name).rlike(r"^-?\d+\.0+$")


def without_zeros(name: str) -> Column:
    """The id with 104.0 spelled as 104."""
    return F.when(spelled_with_zeros(name), F.regexp_replace(F.col(name), r"\.0+$", "")).otherwise(F.col(name))


def unreadable(typed: DataFrame) -> DataFrame:
    """The rows with a reason: position, line, reason.

    With position in the select, the filter stays above the parsing (see typed_rows).
    """
    return typed.where(F.col("reason").isNotNull()).select("position", "line", "reason")


def blank_ends(typed: DataFrame) -> DataFrame:
    """Positions of the blank lines at the ends of files, which are no rows."""
    numbered = typed.withColumn("file_number", F.shiftright("position", FILE_SHIFT))
    is_blank = F.coalesce(F.col("reason") == EMPTY_LINE, F.lit(False))
    last = numbered.groupBy("file_number").agg(F.max(F.when(~is_blank, F.col("position"))).alias("last"))
    blank = numbered.where(is_blank).join(F.broadcast(last), on="file_number", how="inner")
    return blank.where(F.col("last").isNull() | (F.col("position") > F.col("last"))).select("position")


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
    """The good rows of typed_rows(), collapsed()."""
    good = typed.where(F.col("reason").isNull()).select(*INTERACTION, "position", F.lit(1).alias("copies"))
    return collapsed(good, partitions)


def collapsed(interactions: DataFrame, partitions: int) -> DataFrame:
    """INTERACTION, position, copies. All rows of a user are in one partition, sorted by user and item.

    Rows equal in all of INTERACTION collapse to the first; copies is how many there were. All later steps use these
    partitions, and mostly their order: this is the only shuffle of the whole log.
    """
    placed = interactions.repartition(partitions, "raw_user_id")
    # Spark would plan two aggregations for a key of doubles; for a single number, xxhash64 is one-to-one.
    keys = ("raw_user_id", "raw_item_id", "timestamp", "bits")
    ordered = placed.withColumn("bits", F.xxhash64("relevance")).sortWithinPartitions(*keys)
    kept = ordered.groupBy(*keys).agg(
        F.first("relevance").alias("relevance"),
        F.min("position").alias("position"),
        F.sum("copies").cast("int").alias("copies"),
    )
    return kept.select(*INTERACTION, "position", "copies")
