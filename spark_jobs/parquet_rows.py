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

from pnfrec_dist.config.source_settings import SourceSettings
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


def parquet_types(
    files: Sequence[RawFile], source: SourceSettings, others: Sequence[str] = ()
) -> dict[str, ColumnType]:
    """How the columns of the roles, and others, are read, by name.

    Raises InputError for types that are not read or that differ.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda file: _types_of(file, source, others), files))
    for file, types in zip(files, found, strict=True):
        for name, (kind, how) in types.items():
            first, first_how = found[0][name]
            if how != first_how:
                raise InputError(
                    f"{file.location}: column {name!r} is {kind}, {files[0].location} has {first}; "
                    "give all files the same type"
                )
    return {name: how for name, (_, how) in found[0].items()}


def _types_of(
    file: RawFile, source: SourceSettings, others: Sequence[str]
) -> dict[str, tuple[pa.DataType, ColumnType]]:
    """The type of each column in one file, and how it is read."""
    kinds = _kinds(file)
    require_columns(source, list(kinds), file)
    found = {}
    for role, name in source.columns().items():
        kind, how = kinds[name]
        if how is None or not _can_be(role, how):
            raise InputError(f"{file.location}: column {name!r} (source.{role}) is {kind}; {WAY_OUT[role]}")
        found[name] = (kind, how)
    for name in others:
        if name not in kinds:
            raise InputError(f"{file.location} has no column {name!r}; give all files the same columns")
        kind, how = kinds[name]
        if how is None:
            raise InputError(f"{file.location}: column {name!r} is {kind}; no condition can use it")
        found[name] = (kind, how)
    return found


def _kinds(file: RawFile) -> dict[str, tuple[pa.DataType, ColumnType | None]]:
    """The type of each column of a file, and how it is read; None: it is not."""
    try:
        with file.location.open() as content:
            metadata = pq.read_metadata(content)
            schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file.location} is not a Parquet file ({error})") from error
    columns = [metadata.schema.column(number) for number in range(len(metadata.schema))]
    physical = {column.path: column.physical_type for column in columns}
    return {field.name: (field.type, column_type(field.type, physical.get(field.name, ""))) for field in schema}


def condition_kinds(file: RawFile) -> tuple[dict[str, DataType], dict[str, str]]:
    """(the type that conditions see of each column that can be read, why the others cannot)."""
    kinds = _kinds(file)
    seen = {name: _seen_type(how) for name, (_, how) in kinds.items() if how}
    return seen, {name: f"it is {kind}, which is not read" for name, (kind, how) in kinds.items() if not how}


def _seen_type(how: ColumnType) -> DataType:
    if how.is_nanos:
        return TimestampType()
    if _is_float(how):
        return DoubleType()
    return StringType() if isinstance(how.spark, BinaryType) else how.spark


def _can_be(role: str, how: ColumnType) -> bool:
    is_time = how.is_nanos or isinstance(how.spark, TimestampType | TimestampNTZType)
    if role == "relevance":
        return not is_time and not isinstance(how.spark, DateType)
    return role != "timestamp" or is_time or isinstance(how.spark, TIMES)


@dataclass(frozen=True)
class Record:
    """How records are read."""

    schema: StructType
    """the columns, as Spark reads them"""
    places: Mapping[str, str]
    """column -> its name among this program's own columns"""
    values: Mapping[str, Column]
    """column -> its value"""
    seen: Mapping[str, Column]
    """column -> its value in conditions: a float32 is its shortest decimal"""
    text: Column
    """the record as text"""


def parquet_record(files: Sequence[RawFile], source: SourceSettings, others: Sequence[str] = ()) -> Record:
    """others: columns that conditions use."""
    types = parquet_types(files if others else files[:1], source, others)
    schema = StructType([StructField(name, how.spark) for name, how in types.items()])
    places = {name: f"value_{place}" for place, name in enumerate(types)}
    values = {name: _value(places[name], how) for name, how in types.items()}
    text = F.to_json(F.struct(*[value.alias(name) for name, value in values.items()]))
    shorter = {name: values[name].cast("string").cast("double") for name in others if _is_float(types[name])}
    return Record(schema, places, values, {name: values[name] for name in others} | shorter, text)


def _is_float(how: ColumnType) -> bool:
    return isinstance(how.spark, FloatType)


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
