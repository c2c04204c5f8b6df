"""Turns rows as read into typed interactions. Every row is kept, left out, or quarantined with its reason."""

import functools
import operator
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, DoubleType, FloatType

from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.source_settings import SourceSettings
from spark_jobs.conditions import met
from spark_jobs.feedback import empty_or, is_both, label_of, relevance_of, relevance_reason, rules_met
from spark_jobs.raw_files import RawFile
from spark_jobs.sources import FILE_SHIFT, position
from spark_jobs.text_rows import EMPTY_LINE, HEADER_AGAIN
from spark_jobs.times import has_fraction, no_time_reason, parsed_time, range_reason

INTERACTION = ("raw_user_id", "raw_item_id", "relevance", "timestamp")
UNDOING = ("undone", "undone_by")
"""Bits of the rules that can take a row back, and of those by which it takes others back."""
UNWANTED, NEITHER = "where", "neither"
"""Why a row is left out: it does not meet source.where, or is neither a like nor a dislike."""
BLANKS = " \t\u00a0"


def typed_rows(rows: DataFrame, settings: DatasetSettings, unit: str, whole: Sequence[str] = ()) -> DataFrame:
    """Columns INTERACTION, UNDOING, position, line, `reason` (null when the row is good), left_out, label, is_fraction.

    raw ids: non-empty text; relevance: finite double (a label or condition: 1 positive, 0 negative, null neither);
    timestamp: bigint in `unit`. left_out: why a row that could be read is no interaction. label: the label as read, if
    labels say what is positive; is_fraction: see times.has_fraction(). whole: ids whose 104.0 is spelled as 104.
    """
    source, feedback = settings.reading(), settings.feedback
    # In two steps, so that each value is parsed once; the reason is looked for only where parsing gave no value.
    ids = {f"raw_{role}_id": _raw_id(rows, role) for role in ("user", "item")}
    values = rows.select(
        *[(without_zeros(raw_id) if name in whole else raw_id).alias(name) for name, raw_id in ids.items()],
        relevance_of(rows, feedback).alias("relevance"),
        rules_met(feedback.undone, "undone").alias("undone"),
        rules_met(feedback.undone_by, "undone_by").alias("undone_by"),
        (~met("source.where") if source.where else F.lit(False)).alias("is_unwanted"),
        parsed_time(rows, source, unit).alias("timestamp"),
        F.col("relevance").alias("relevance_read"),
        F.col("timestamp").alias("timestamp_read"),
        # position depends on Spark's counting of rows, so no filter moves below this select. Otherwise the optimizer
        # copies the parsing into the condition of every filter on `reason` (20 M rows: 200 s instead of 25 s).
        position(source).alias("position"),
        "line",
        F.coalesce("problem", is_both(feedback)).alias("problem"),
    )
    left_out = F.when(F.col("problem").isNotNull(), None).when(F.col("is_unwanted"), F.lit(UNWANTED))
    if feedback.positive:
        left_out = left_out.when(F.col("relevance").isNull() & (F.col("undone_by") == 0), F.lit(NEITHER))
    reason = F.coalesce(
        F.col("problem"),
        _id_reason("raw_user_id", source.user, source),
        _id_reason("raw_item_id", source.item, source),
        relevance_reason(values, feedback, source.relevance),
        F.when(F.col("timestamp").isNull(), empty_or(source.timestamp, "timestamp_read", no_time_reason(source))),
        range_reason(settings.clean, source.timestamp, unit),
    )
    by_label = feedback.threshold == "labels"
    label = label_of(F.col("relevance_read")) if by_label else F.lit(None).cast("string")
    return values.select(
        *INTERACTION,
        *UNDOING,
        "position",
        "line",
        F.when(left_out.isNull(), reason).alias("reason"),
        left_out.alias("left_out"),
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


def spelled_with_zeros(raw_id: Column) -> Column:
    """Whether an id is a whole number that is spelled with a fraction, such as 104.0."""
    return F.contains(raw_id, F.lit(".")) & raw_id.rlike(r"^-?\d+\.0+$")


def without_zeros(raw_id: Column) -> Column:
    """The id with 104.0 spelled as 104."""
    return F.when(spelled_with_zeros(raw_id), F.regexp_replace(raw_id, r"\.0+$", "")).otherwise(raw_id)


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
