"""Parquet files: which column types can be read, and the four fields of a record as Spark columns."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from pnfrec_dist.config.dataset_settings import SourceSettings
from pnfrec_dist.errors import InputError
from spark_jobs.raw_files import THREADS, RawFile, require_columns

MAX_DIGITS = 38
"""of Spark's decimals"""
INT96 = "INT96"
"""Timestamps as Spark and Hive write them."""


@dataclass(frozen=True)
class ColumnType:
    """How a column is read."""

    spark: DataType
    """the type that Spark reads"""
    is_nanos: bool = False
    """whether these are whole numbers of nanoseconds since 1970"""


Test = Callable[[pa.DataType], bool]
READ: tuple[tuple[Test, DataType], ...] = (
    (pa.types.is_boolean, BooleanType()),
    (pa.types.is_int8, ByteType()),
    (pa.types.is_int16, ShortType()),
    (pa.types.is_int32, IntegerType()),
    (pa.types.is_int64, LongType()),
    (pa.types.is_uint8, ShortType()),
    (pa.types.is_uint16, IntegerType()),
    (pa.types.is_uint32, LongType()),
    (pa.types.is_uint64, DecimalType(20, 0)),
    (pa.types.is_float32, FloatType()),
    (pa.types.is_float64, DoubleType()),
    (pa.types.is_string, StringType()),
    (pa.types.is_large_string, StringType()),
    (pa.types.is_string_view, StringType()),
    (pa.types.is_binary, BinaryType()),
    (pa.types.is_large_binary, BinaryType()),
    (pa.types.is_binary_view, BinaryType()),
    (pa.types.is_fixed_size_binary, BinaryType()),
    (pa.types.is_date, DateType()),
)
"""The types that are read, and as which type of Spark. Decimals and timestamps are read, too; see column_type()."""
WAY_OUT = {
    "user": "write it as text or as whole numbers",
    "item": "write it as text or as whole numbers",
    "relevance": "write it as numbers or as text",
    "timestamp": "write it as timestamp[us], as a date, or as whole seconds since 1970",
}
TIMES = (ByteType, ShortType, IntegerType, LongType, DecimalType, DoubleType, StringType, BinaryType, DateType)
"""Types of a time, besides timestamps. A float32 has no room for seconds since 1970."""


def column_type(kind: pa.DataType, physical: str = "") -> ColumnType | None:
    """How a column of an Arrow type is read; None if it is not. physical: its type in the Parquet file."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_decimal(kind):
        return (
            ColumnType(DecimalType(kind.precision, kind.scale))
            if 0 <= kind.scale <= kind.precision <= MAX_DIGITS
            else None
        )
    if pa.types.is_timestamp(kind):
        if physical == INT96:
            return ColumnType(TimestampType())
        if kind.unit == "ns":
            return ColumnType(LongType(), is_nanos=True)
        return ColumnType(TimestampType() if kind.tz else TimestampNTZType())
    return next((ColumnType(spark) for is_kind, spark in READ if is_kind(kind)), None)


def parquet_types(files: Sequence[RawFile], source: SourceSettings) -> dict[str, ColumnType]:
    """How the four columns are read, by name. Raises InputError for types that are not read or that differ."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda file: _types_of(file, source), files))
    for file, types in zip(files, found, strict=True):
        for name, (kind, how) in types.items():
            first, first_how = found[0][name]
            if how != first_how:
                raise InputError(
                    f"{file.location}: column {name!r} is {kind}, {files[0].location} has {first}; "
                    "give all files the same type"
                )
    return {name: how for name, (_, how) in found[0].items()}


def _types_of(file: RawFile, source: SourceSettings) -> dict[str, tuple[pa.DataType, ColumnType]]:
    """The type of each of the four columns in one file, and how it is read."""
    try:
        with file.location.open() as content:
            metadata = pq.read_metadata(content)
            schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file.location} is not a Parquet file ({error})") from error
    require_columns(source, schema.names, file)
    columns = [metadata.schema.column(number) for number in range(len(metadata.schema))]
    physical = {column.path: column.physical_type for column in columns}
    found = {}
    for role, name in source.columns().items():
        kind = schema.field(name).type
        how = column_type(kind, physical.get(name, ""))
        if how is None or not _can_be(role, how):
            raise InputError(f"{file.location}: column {name!r} (source.{role}) is {kind}; {WAY_OUT[role]}")
        found[name] = (kind, how)
    return found


def _can_be(role: str, how: ColumnType) -> bool:
    is_time = how.is_nanos or isinstance(how.spark, TimestampType | TimestampNTZType)
    if role == "relevance":
        return not is_time and not isinstance(how.spark, DateType)
    return role != "timestamp" or is_time or isinstance(how.spark, TIMES)


def parquet_columns(
    files: Sequence[RawFile], source: SourceSettings
) -> tuple[StructType, Mapping[str, Column], Column]:
    """(the schema to read with, role -> its value for those that the source has, the record as text)."""
    types = parquet_types(files[:1], source)
    schema = StructType([StructField(name, how.spark) for name, how in types.items()])
    values = {name: _value(name, how) for name, how in types.items()}
    text = F.to_json(F.struct(*[value.alias(name) for name, value in values.items()]))
    return schema, {role: values[name] for role, name in source.columns().items()}, text


def _value(name: str, how: ColumnType) -> Column:
    found = column(name)
    if isinstance(how.spark, BinaryType):
        return found.cast("string")
    if how.is_nanos:  # Spark's own timestamps are whole microseconds
        return F.timestamp_micros(F.call_function("div", found - F.pmod(found, F.lit(1000)), F.lit(1000)))
    return found


def column(name: str) -> Column:
    """A column by its name, which may contain any characters."""
    return F.col("`" + name.replace("`", "``") + "`")
