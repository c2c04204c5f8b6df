"""Delimited text and JSON lines: the four fields of a line as Spark columns, and why a line has none."""

import contextlib
import csv
import re
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StringType, StructField, StructType

from pnfrec_dist.config.source_settings import SourceSettings
from pnfrec_dist.errors import InputError
from spark_jobs.raw_files import RawFile, first_lines, require_columns

CORRUPT = "_corrupt_record"
HEADER_AGAIN = "a header line inside the file"
EMPTY_LINE = "an empty line"


Fields = tuple[dict[str, Column], Column, Column]
"""(column -> its text, why there are no fields, the column `parts` that both use)."""


def csv_fields(files: Sequence[RawFile], source: SourceSettings, names: Sequence[str]) -> Fields:
    """names: the columns that are read."""
    firsts = first_lines(files, source.encoding) if source.header else []
    columns = _columns(files, firsts, source)
    part = {name: F.get("parts", F.lit(columns.index(name))) for name in names}
    # A header line of any file is not data in any file; clean.rejected() leaves out each file's own.
    again = F.col("line").isin(sorted(set(firsts))) if source.header else F.lit(False)
    wrong_size = F.coalesce(F.size("parts") != len(columns), F.lit(True))
    why = _empty_or(f"not {len(columns)} fields")
    if source.quote:
        why = F.when(_has_open_quote(F.col("line"), source), F.lit("a quote that does not close")).otherwise(why)
    broken = F.when(again, F.lit(HEADER_AGAIN)).when(wrong_size, why)
    return part, broken, _csv_parts(F.col("line"), columns, source)


def _has_open_quote(line: Column, source: SourceSettings) -> Column:
    if source.escape:
        line = F.regexp_replace(line, re.escape(source.escape) + ".", "")
    return (F.length(line) - F.length(F.replace(line, F.lit(source.quote), F.lit("")))) % 2 == 1


def json_fields(names: Sequence[str]) -> Fields:
    """names: the columns that are read."""
    record = StructType([StructField(name, StringType()) for name in names])
    # With brackets added, text after the object makes the array malformed, or longer than 1.
    objects = F.from_json(F.concat(F.lit("["), F.col("line"), F.lit("]")), ArrayType(record))
    first = F.get("parts", F.lit(0))
    part = {name: first.getField(name) for name in names}
    broken = F.when(F.coalesce(F.size("parts") != 1, F.lit(True)) | first.isNull(), _empty_or("not one JSON object"))
    for name, text in part.items():
        broken = broken.when(_is_nested(text, name), F.lit(f"{name} is no text and no number"))
    return part, broken, objects


def _is_nested(text: Column, name: str) -> Column:
    """Whether a JSON field is an array or an object. Its text may look like one: "[unknown]"."""

    def is_a(kind: DataType) -> Column:
        record = F.from_json(F.col("line"), StructType([StructField(name, kind)]))
        return record.getField(name).isNotNull()

    is_array, is_object = is_a(ArrayType(StringType())), is_a(MapType(StringType(), StringType()))
    return F.when(text.startswith("["), is_array).when(text.startswith("{"), is_object).otherwise(F.lit(False))


def _empty_or(problem: str) -> Column:
    return F.when(F.trim("line") == "", F.lit(EMPTY_LINE)).otherwise(F.lit(problem))


def _csv_parts(line: Column, columns: list[str], source: SourceSettings) -> Column:
    """The fields of a line as an array of text; null if a quote does not close. Lines without quotes are split."""
    split = F.split(line, _pattern(source.separator))
    if not source.quote:
        return split
    names = [f"c{number}" for number in range(len(columns))]
    schema = ", ".join(f"{name} string" for name in [*names, CORRUPT])
    options = {
        "sep": source.separator,
        "quote": source.quote,
        "escape": source.escape or source.quote,
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": CORRUPT,
    }
    record = F.from_csv(line, schema, options)
    is_whole = ~_has_open_quote(line, source) & record[CORRUPT].isNull()
    quoted = F.when(is_whole, F.array(*[record[name] for name in names]))
    return F.when(F.contains(line, F.lit(source.quote)), quoted).otherwise(split)


def one_item_a_row(rows: DataFrame, source: SourceSettings) -> DataFrame:
    """A row for each item of the column `item`, which lists several: N1 N2, or with their relevance N1-1 N2-0."""
    is_whole = F.col("problem").isNull()
    listed = F.when(is_whole, F.split(F.trim("item"), _pattern(source.item_separator)))
    rows = rows.withColumn("item", F.explode_outer(listed))
    between = source.relevance_separator
    if not between:
        return rows
    relevance = F.substring_index("item", between, -1)
    item = F.substring("item", F.lit(1), F.length("item") - F.length(relevance) - len(between))
    is_pair = F.contains("item", F.lit(between))
    what = F.lit(f"an item of {source.item} without {between!r} and its relevance")
    problem = F.coalesce("problem", F.when((F.col("item") != "") & ~is_pair, what))
    return rows.withColumns(
        {"item": F.when(is_pair, item).otherwise(F.col("item")), "relevance": relevance, "problem": problem}
    )


def _pattern(text: str) -> str:
    """A regular expression for a text."""
    return re.sub(r"(\W)", r"\\\1", text)


def text_columns(files: Sequence[RawFile], source: SourceSettings) -> list[str]:
    """The column names of delimited files. Raises InputError for files that differ or lack one."""
    return _columns(files, first_lines(files, source.encoding) if source.header else [], source)


def _columns(files: Sequence[RawFile], firsts: list[str], source: SourceSettings) -> list[str]:
    if not source.header:
        columns = list(source.fields)
    else:
        headers = [_fields(line, source) for line in firsts]
        columns = headers[0]
        for file, header in zip(files, headers, strict=True):
            if not header:
                what = "starts with an empty line instead of a header" if file.bytes else "is empty"
                raise InputError(f"{file.location} {what}; check RAW (--raw) and source.header")
            if header != columns:
                raise InputError(
                    f"{file.location} has columns {header}, {files[0].location} has {columns}; give all files the same"
                )
    require_columns(source, columns, files[0])
    return columns


def _fields(line: str, source: SourceSettings) -> list[str]:
    if len(source.separator) == 1 and source.quote:
        escape = source.escape or None
        with contextlib.suppress(csv.Error):  # a line that is too long for it is no header
            reader = csv.reader([line], delimiter=source.separator, quotechar=source.quote, escapechar=escape)
            return next(reader, [])
    return line.split(source.separator) if line else []
