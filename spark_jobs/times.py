"""Times: text, numbers and Spark's own types -> whole numbers of a unit since 1970, in UTC."""

import datetime
import re

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, DoubleType, StringType, TimestampNTZType, TimestampType

from pnfrec_dist.config.dataset_settings import CleanSettings
from pnfrec_dist.config.source_settings import EPOCH_UNITS, NUMBERS, SourceSettings
from pnfrec_dist.errors import InputError

TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units per second."""
ROWS = "rows"
"""The unit of source.timestamp none: the number of the row."""
FINER = {"s": "us", "ms": "us", "us": "ns"}
"""The unit for numbers with a fraction."""
FIRST_SHORT_YEAR = 1969
"""Two-digit years are of 1969 to 2068, as in POSIX (strptime's %y)."""


def timestamp_unit(rows: DataFrame, source: SourceSettings) -> str:
    """The unit in which timestamps are kept: fine enough to preserve their order, unless numbers have a fraction."""
    if source.order == "rows":
        return ROWS
    kind = rows.schema["timestamp"].dataType
    if _is_time(kind):
        return "us"
    if isinstance(kind, DateType):
        return "s"
    if source.time_format in (*EPOCH_UNITS, NUMBERS):
        return source.time_format
    return "us" if source.time_format == "iso" or "S" in source.time_format else "s"


def _is_time(kind: DataType) -> bool:
    return isinstance(kind, TimestampType | TimestampNTZType)


def _is_number(kind: DataType, source: SourceSettings) -> bool:
    """Whether the column holds numbers, in the unit source.time_format."""
    is_text = isinstance(kind, StringType) and source.time_format not in (*EPOCH_UNITS, NUMBERS)
    return not (_is_time(kind) or isinstance(kind, DateType) or is_text)


def parsed_time(rows: DataFrame, source: SourceSettings, unit: str) -> Column:
    """The column `timestamp` in `unit` as bigint, or null if it cannot be read."""
    value, kind = F.col("timestamp"), rows.schema["timestamp"].dataType
    if unit == ROWS:
        return value
    if _is_time(kind) or isinstance(kind, DateType):
        return _ticks(value.cast("timestamp"), unit)
    if not _is_number(kind, source):
        if source.time_format == "iso":  # Spark would take a time of day alone as a time of today
            text = F.trim(value)
            return F.when(text.rlike(r"^\d{4}-\d{2}-\d{2}"), _ticks(F.try_to_timestamp(text), unit))
        return _ticks(_by_pattern(value, source.time_format), unit)
    # A column of whole numbers with gaps is often written as floats, such as 978300760.0.
    factor = 1 if unit == NUMBERS else TICKS[unit] // TICKS[_epoch_unit(source)]
    decimal = value.try_cast("decimal(38,9)")
    if factor > 1:
        return F.round(F.try_multiply(decimal, F.lit(factor))).try_cast("bigint")
    whole = F.when(decimal == F.floor(decimal), decimal.try_cast("bigint"))
    return whole if isinstance(kind, DoubleType) else F.coalesce(value.try_cast("bigint"), whole)


def _epoch_unit(source: SourceSettings) -> str:
    """The unit of numbers since 1970."""
    return source.time_format if source.time_format in EPOCH_UNITS else "s"


def has_fraction(values: DataFrame, source: SourceSettings) -> Column:
    """Whether `timestamp_read` is a number with a fraction, which parsed_time() cannot read in the source's unit."""
    kind = values.schema["timestamp_read"].dataType
    if source.order == "rows" or not _is_number(kind, source):
        return F.lit(False)
    return F.col("timestamp").isNull() & F.col("timestamp_read").try_cast("decimal(38,9)").isNotNull()


def _by_pattern(value: Column, pattern: str) -> Column:
    """A timestamp from text. The name of a weekday at the start is skipped, because Spark does not parse it."""
    text = F.trim(value)
    if re.match("E+", pattern):
        pattern = re.sub(r"^E+,? *", "", pattern)
        text = F.regexp_replace(text, r"^\p{L}+\.?,? *", "")
    time = F.try_to_timestamp(text, F.lit(pattern))
    if re.search("(?<![yu])(yy|uu)(?![yu])", pattern):  # Spark reads them as 2000 to 2099
        is_earlier = F.year(time) > FIRST_SHORT_YEAR + 99
        time = F.when(is_earlier, time - F.make_ym_interval(F.lit(100))).otherwise(time)
    return time


def require_pattern(spark: SparkSession, pattern: str) -> None:
    """Raises InputError for a time pattern that Spark cannot read."""
    try:
        spark.range(1).select(_by_pattern(F.lit("2020-01-01"), pattern)).collect()
    except PySparkException as error:
        example = "example: yyyy-MM-dd HH:mm:ss"
        raise InputError(f"source.time_format {pattern!r} is not a pattern that Spark can read; {example}") from error


def _ticks(time: Column, unit: str) -> Column:
    return F.unix_micros(time) if unit == "us" else F.unix_seconds(time)


def no_time_reason(source: SourceSettings) -> str:
    """The reason for a time that cannot be read."""
    if source.time_format == NUMBERS:
        return f"{source.timestamp} is not a whole number"
    if source.time_format in EPOCH_UNITS:
        return f"{source.timestamp} is not a number ({source.time_format} since 1970)"
    return f"{source.timestamp} is no time like {source.time_format}"


def range_reason(clean: CleanSettings, name: str, unit: str) -> Column:
    """The reason for timestamps outside the allowed range, or null."""
    if unit in (ROWS, NUMBERS):
        return F.lit(None).cast("string")
    timestamp = F.col("timestamp")
    early = timestamp < epoch_ticks(clean.earliest, unit) if clean.earliest else F.lit(False)
    late = timestamp >= epoch_ticks(clean.latest, unit) if clean.latest else F.lit(False)
    return F.when(early, F.lit(f"{name} is before {clean.earliest}")).when(
        late, F.lit(f"{name} is not before {clean.latest}")
    )


def timestamp_range(clean: CleanSettings, unit: str) -> tuple[int, int]:
    """The lowest and the highest timestamp that a good row may have."""
    if unit in (ROWS, NUMBERS):
        return -(2**62), 2**62
    low = epoch_ticks(clean.earliest, unit) if clean.earliest else -(2**63)
    return low, epoch_ticks(clean.latest, unit) - 1 if clean.latest else 2**63 - 1


def epoch_ticks(date: str, unit: str) -> int:
    """Midnight UTC of an ISO date as a timestamp in `unit`."""
    midnight = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC)
    return int(midnight.timestamp()) * TICKS[unit]


def date_of(timestamp: int, unit: str) -> str:
    """A timestamp as text, with its time zone."""
    if unit == ROWS:
        return f"row {timestamp:,} of the source"
    if unit == NUMBERS:
        return "on the source's own clock"
    try:
        found = datetime.datetime.fromtimestamp(timestamp // TICKS[unit], datetime.UTC)
        return f"{found:%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "beyond the year 9999"
