"""Raw files -> one row per line or record: the four raw fields, the text, its position, and its problem if any."""

import codecs
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from pnfrec_dist.config.source_settings import SourceSettings
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.conditions import Conditions
from spark_jobs.parquet_rows import column, condition_kinds, parquet_record, parquet_types
from spark_jobs.raw_files import ROLES, THREADS, RawFile
from spark_jobs.text_rows import csv_fields, json_fields, one_item_a_row, text_columns

MISSING = {"relevance": "1", "timestamp": None}
PLACE = ("file_number", "in_file")
SAMPLE = 10_000
"""JSON objects in which the columns of conditions are looked for first."""
FILE_SHIFT = 44
"""position() = file number << FILE_SHIFT | place in the file. Enough for 2^19 files of up to 16 TiB."""
ROW_BITS = 33
"""Bits of a row's number within its partition in Spark's monotonically_increasing_id."""


def check_files(files: Sequence[RawFile], source: SourceSettings) -> None:
    """Raises InputError for files that do not match the settings, before Spark is started."""
    if source.format == "csv":
        text_columns(files, source)
    elif source.format == "parquet":
        parquet_types(files, source)


def read_rows(
    spark: SparkSession,
    files: Sequence[RawFile],
    source: SourceSettings,
    texts: Mapping[str, str] | None = None,
    *,
    is_first: bool = True,
) -> DataFrame:
    """One row per line (text) or record (Parquet): ROLES as text (Parquet: own types), line, problem, and PLACE.

    is_first: False if rows of other files were read before, so that JSON objects may lack columns of conditions.
    texts: setting -> condition; each becomes a boolean column, see conditions.met(). A line that lists several items
    gives a row for each.

    line: the row's text; problem: why the line has no fields, or null; PLACE: the input of position(). Text is read as
    lines and split here, because Spark's own readers drop blank lines, replace invalid UTF-8 by U+FFFD, and turn
    what they cannot read into null. Without a column of relevance, it is 1. In the order of rows, timestamp is the
    number of the row, from 0.
    """
    conditions = Conditions(spark, texts or {})
    if source.format == "parquet":
        rows = _read_parquet(spark, files, source, conditions)
    else:
        rows = _read_text(spark, files, source, conditions, is_first=is_first)
    return _by_row_number(rows, files, source) if source.order == "rows" else rows


def _read_text(
    spark: SparkSession, files: Sequence[RawFile], source: SourceSettings, conditions: Conditions, *, is_first: bool
) -> DataFrame:
    lines = spark.read.text([_spark_path(f.location) for f in files]).withColumnRenamed("value", "line")
    charset = codecs.lookup(source.encoding).name
    is_valid = F.is_valid_utf8("line")
    if not charset.startswith("utf-8"):
        require_charset(spark, source.encoding)
        lines = lines.withColumn("line", F.decode(F.col("line").cast("binary"), charset))
        is_valid = ~F.contains("line", F.lit("\ufffd"))
    rows = _with_place(lines.select("line", *_file_and_place(F.col("_metadata.file_block_start"))), files)
    known = text_columns(files, source) if source.format == "csv" else list(conditions.columns)
    for name, setting in conditions.columns.items():
        if known.count(name) > 1:
            raise InputError(f"{setting} names the column {name!r}, and there are {known.count(name)}; rename one")
    conditions.resolve(dict.fromkeys(known, StringType()))
    names = list(dict.fromkeys([*source.columns().values(), *conditions.columns]))
    part, broken, parts = csv_fields(files, source, names) if source.format == "csv" else json_fields(names)
    line = F.col("line")
    problem = F.when(~is_valid, F.lit(f"not valid {source.encoding.upper()}")).otherwise(broken)
    rows = rows.withColumn("parts", parts)
    if source.format == "json" and is_first:
        _require_json_columns(rows, part, conditions)
    own = [*_roles(part, source), F.make_valid_utf8(line).alias("line"), problem.alias("problem"), *map(F.col, PLACE)]
    seen = {name: F.nullif(part[name], F.lit("")) for name in conditions.columns}
    rows = conditions.evaluate(rows, own, seen)
    return one_item_a_row(rows, source) if source.item_separator else rows


def _require_json_columns(rows: DataFrame, part: Mapping[str, Column], conditions: Conditions) -> None:
    """Raises InputError for a column of a condition that no object has. Few objects are read, if they have all."""
    names = list(conditions.columns)
    for looked_at in (rows.limit(SAMPLE), rows) if names else ():
        found = looked_at.agg(*[F.count(part[name]) for name in names]).collect()[0]
        names = [name for name, count in zip(names, found, strict=True) if not count]
        if not names:
            return
    for name in names:
        raise InputError(f"{conditions.columns[name]} names the column {name!r}, which no object of the source has")


def _roles(values: Mapping[str, Column], source: SourceSettings) -> list[Column]:
    """ROLES from the columns of the source; those that it does not have are filled."""
    columns = source.columns()
    return [(values[columns[r]] if r in columns else F.lit(MISSING.get(r))).alias(r) for r in ROLES]


def require_charset(spark: SparkSession, encoding: str) -> None:
    """Raises InputError for an encoding that Java does not know."""
    java: Any = spark._jvm
    if not java.java.nio.charset.Charset.isSupported(codecs.lookup(encoding).name):
        raise InputError(f"source.encoding {encoding!r} is not known to Java; convert the files: iconv -t UTF-8")


def position(source: SourceSettings) -> Column:
    """bigint that orders rows as the source does, from PLACE: file number, then place in the file.

    A text row's place is the start of its block plus its number in the partition. This keeps the order: a block has
    more bytes than rows, and only the last block of a file shares its partition with other files.
    """
    in_file = F.col("in_file") + (F.lit(0) if source.format == "parquet" else _in_partition())
    return F.shiftleft("file_number", FILE_SHIFT) + in_file


def _read_parquet(
    spark: SparkSession, files: Sequence[RawFile], source: SourceSettings, conditions: Conditions
) -> DataFrame:
    if conditions.texts:
        conditions.resolve(*condition_kinds(files[0]))
    record = parquet_record(files, source, list(conditions.columns))
    # Other columns are not read: Spark would fail on a column that it has no type for.
    records = spark.read.schema(record.schema).parquet(*[_spark_path(f.location) for f in files])
    # The source's names may be those of this program's own columns.
    own_names = [column(name).alias(place) for name, place in record.places.items()]
    records = records.select(*own_names, *_file_and_place(F.col("_metadata.row_index")))
    rows = _with_place(records, files)
    own = [*_roles(record.values, source), record.text.alias("line"), F.lit(None).cast("string").alias("problem")]
    return conditions.evaluate(rows, [*own, *map(F.col, PLACE)], record.seen)


def _by_row_number(rows: DataFrame, files: Sequence[RawFile], source: SourceSettings) -> DataFrame:
    """The rows with timestamp = the number of a row among all rows of the files, from 0, whatever the partitions."""
    if source.format == "parquet":
        with ThreadPoolExecutor(THREADS) as pool:
            firsts = [0, *accumulate(pool.map(_parquet_rows, files))][:-1]
        first = F.get(F.array(*[F.lit(number).cast("bigint") for number in firsts]), F.col("file_number").cast("int"))
        return rows.withColumn("timestamp", first + F.col("in_file"))
    # Of each block: how many rows, and the first number that Spark gives them in their partition.
    numbered = rows.withColumn("in_partition", _in_partition())
    counted = numbered.groupBy(*PLACE).agg(F.min("in_partition").alias("first"), F.count("*").alias("rows")).collect()
    blocks = sorted((row["file_number"], row["in_file"], row["first"], row["rows"]) for row in counted)
    before = [0, *accumulate(count for *_, count in blocks)]
    shifts = [(file, start, total - first) for (file, start, first, _), total in zip(blocks, before, strict=False)]
    table = rows.sparkSession.createDataFrame(shifts, "file_number bigint, in_file bigint, shift bigint")
    placed = numbered.join(F.broadcast(table), on=list(PLACE), how="left")
    return placed.withColumn("timestamp", F.col("shift") + F.col("in_partition")).drop("shift", "in_partition")


def _in_partition() -> Column:
    return F.monotonically_increasing_id().bitwiseAND(F.lit((1 << ROW_BITS) - 1))


def _parquet_rows(file: RawFile) -> int:
    with file.location.open() as content:
        return int(pq.read_metadata(content).num_rows)


def _file_and_place(in_file: Column) -> list[Column]:
    """file_path and in_file. Metadata columns are lost in a join, so they become normal columns before it."""
    return [F.col("_metadata.file_path").alias("file_path"), in_file.alias("in_file")]


def _with_place(frame: DataFrame, files: Sequence[RawFile]) -> DataFrame:
    """Adds file_number, from file_path."""
    if len(files) == 1:
        return frame.drop("file_path").withColumn("file_number", F.lit(0).cast("bigint"))
    numbers = {_plain(f.location.uri): number for number, f in enumerate(files)}
    paths = [re.sub("^file:/+", "file:/", uri) for uri in frame.inputFiles()]  # the form in the metadata column
    found = [(path, numbers[_plain(urllib.parse.unquote(path))]) for path in paths]
    table = frame.sparkSession.createDataFrame(found, "file_path string, file_number bigint")
    placed = frame.join(F.broadcast(table), on="file_path", how="left")
    unknown = F.raise_error(F.concat(F.lit("no such raw file: "), "file_path")).cast("bigint")
    return placed.withColumn("file_number", F.coalesce("file_number", unknown))


def _plain(uri: str) -> str:
    return re.sub("^file:/+", "/", uri)


def _spark_path(location: Location) -> str:
    return f"file://{location.uri}" if location.is_local else location.uri
