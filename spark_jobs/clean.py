"""Rows as read -> typed interactions; what cannot be read -> quarantine; exact duplicates collapse."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import TimestampNTZType, TimestampType

from pnfrec_dist.config import SourceSettings
from spark_jobs.sources import CORRUPT, POSITION, column

INTERACTION = ("raw_user_id", "raw_item_id", "relevance", "timestamp")


def typed_rows(rows: DataFrame, source: SourceSettings) -> DataFrame:
    """Columns INTERACTION, POSITION, `row` (its text) and `reason` (null when the row is good).

    raw ids: non-empty text; relevance: finite double; timestamp: epoch seconds, bigint.
    """
    text_columns = [c for c in rows.columns if c not in (CORRUPT, *POSITION)]
    is_text = CORRUPT in rows.columns
    user = F.trim(column(source.user).cast("string"))
    item = F.trim(column(source.item).cast("string"))
    relevance = column(source.relevance).try_cast("double")
    timestamp = _epoch_seconds(rows, source.timestamp)
    reason = F.coalesce(
        F.when(F.col(CORRUPT).isNotNull(), F.lit(f"not {len(text_columns)} fields")) if is_text else F.lit(None),
        F.when(user.isNull() | (user == ""), F.lit(f"{source.user} is empty")),
        F.when(item.isNull() | (item == ""), F.lit(f"{source.item} is empty")),
        F.when(relevance.isNull(), F.lit(f"{source.relevance} is not a number")),
        F.when(F.isnan(relevance) | (F.abs(relevance) == float("inf")), F.lit(f"{source.relevance} is not finite")),
        F.when(timestamp.isNull(), F.lit(f"{source.timestamp} is not a whole number of seconds")),
    )
    text = F.to_json(F.struct(*[column(c) for c in text_columns]))
    if is_text:
        fields = [F.coalesce(column(c), F.lit("")) for c in text_columns]
        text = F.coalesce(F.col(CORRUPT), F.concat_ws(source.separator, *fields))
    return rows.select(
        user.alias("raw_user_id"),
        item.alias("raw_item_id"),
        relevance.alias("relevance"),
        timestamp.alias("timestamp"),
        *POSITION,
        text.alias("row"),
        reason.alias("reason"),
    )


def _epoch_seconds(rows: DataFrame, name: str) -> Column:
    if isinstance(rows.schema[name].dataType, TimestampType | TimestampNTZType):
        return F.unix_timestamp(column(name).cast("timestamp"))
    return column(name).try_cast("bigint")


def rejected(typed: DataFrame, file_names: list[str]) -> DataFrame:
    """The quarantine: source_file, row, reason; in source order."""
    names = F.array(*[F.lit(n) for n in file_names])
    return (
        typed.where(F.col("reason").isNotNull())
        .orderBy(*POSITION)
        .select(F.element_at(names, F.col("source_file") + 1).alias("source_file"), "row", "reason")
    )


def accepted(typed: DataFrame) -> DataFrame:
    """The good rows: INTERACTION and POSITION. Rows equal in all of INTERACTION collapse to the first."""
    first = F.min(F.struct(*POSITION)).alias("first")
    unique = typed.where(F.col("reason").isNull()).groupBy(*INTERACTION).agg(first)
    return unique.select(*INTERACTION, *[F.col(f"first.{c}").alias(c) for c in POSITION])
