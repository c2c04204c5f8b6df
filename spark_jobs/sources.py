"""Raw files -> one row per line or record: the four raw fields, the text, its position, and its problem if any."""

import csv
import re
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_type
from pyspark.sql.types import ArrayType, StringType, StructField, StructType

from pnfrec_dist.config.dataset_settings import SourceSettings
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.files.locations import Location
from spark_jobs.fetch import raw_directory

ROLES = ("user", "item", "relevance", "timestamp")
CORRUPT = "_corrupt_record"
PLACE = ("file_number", "in_file")
HEADER_AGAIN = "a header line inside the file"
FILE_SHIFT = 44
"""position() = file number << FILE_SHIFT | place in the file. Enough for 2^19 files of up to 16 TiB."""
ROW_BITS = 33
"""Bits of a row's number within its partition in Spark's monotonically_increasing_id."""
FIRST_READ = 1 << 20
THREADS = 16


class RawPlace(Protocol):
    """The settings that say where the raw data are."""

    @property
    def raw(self) -> str: ...

    @property
    def source(self) -> SourceSettings: ...


@dataclass(frozen=True)
class RawFile:
    """name: path relative to the raw directory; bytes: size."""

    name: str
    location: Location
    bytes: int

    @property
    def directory(self) -> Location:
        """The raw directory."""
        return Location(self.location.uri.removesuffix(f"/{self.name}"))


# ---- finding files ----------------------------------------------------------------------------------------


def find_raw(name: str, place: RawPlace) -> list[RawFile]:
    """The raw files, in name order, in place.raw, else in source.directory, else in data/raw/<name>.

    Raises InputError if one of the first two is given and holds no such file. Else the list may be empty.
    """
    given = place.raw or place.source.directory
    if not given:
        return _matches(Location(raw_directory(name)), place.source.files)
    directory = Location(given)
    if directory.is_file():
        return _matches(directory.parent, directory.name)
    if not directory.is_dir():
        raise InputError(f"raw directory {given!r} does not exist; RAW (--raw) must hold {place.source.files!r}")
    files = _matches(directory, place.source.files)
    if not files:
        raise InputError(f"no file {place.source.files!r} in {directory}; pass RAW=<directory that holds it> (--raw)")
    return files


def _matches(directory: Location, pattern: str) -> list[RawFile]:
    """Files in name order. Raises InputError for names that Spark would skip or treat as a pattern."""
    wanted = re.compile(_glob_regex(pattern))
    sizes = directory.files(recursive="/" in pattern)
    files = [RawFile(name, directory / name, size) for name, size in sizes.items() if wanted.fullmatch(name)]
    for file in files:
        if file.location.name[0] in "._":
            raise InputError(f"{file.location}: Spark skips files whose name starts with {file.name[0]!r}; rename it")
        if set("[]{}*?\\") & set(file.location.uri):
            raise InputError(f"{file.location}: Spark treats [ ] {{ }} * ? and \\ in a path as a pattern; rename it")
        if ":" in file.name:
            raise InputError(f"{file.location}: Spark cannot read files with ':' in their name; rename it")
    return files


def _glob_regex(pattern: str) -> str:
    """A regular expression for a glob: `*` and `?` match within a name, `**/` matches any number of directories."""
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)


def describe_sources(files: Sequence[RawFile]) -> list[FileEntry]:
    """Name, size and sha256 of each raw file."""
    with ThreadPoolExecutor(THREADS) as pool:
        checksums = list(pool.map(lambda file: file.location.sha256(), files))
    return [FileEntry(f.name, f.bytes, checksum) for f, checksum in zip(files, checksums, strict=True)]


# ---- reading rows -----------------------------------------------------------------------------------------


def read_rows(spark: SparkSession, files: Sequence[RawFile], source: SourceSettings) -> DataFrame:
    """One row per line (text) or record (Parquet): ROLES as text (Parquet: own types), line, problem, and PLACE.

    line: the row's text; problem: why the line has no fields, or null; PLACE: the input of position(). Text is read as
    lines and split here, because Spark's own readers drop blank lines, replace invalid UTF-8 by U+FFFD, and turn
    what they cannot read into null.
    """
    if source.format == "parquet":
        return _read_parquet(spark, files, source)
    lines = spark.read.text([_spark_path(f.location) for f in files]).withColumnRenamed("value", "line")
    rows = _with_place(lines, files, F.col("_metadata.file_block_start"))
    if source.format == "csv":
        part, broken, parts = _csv_fields(files, source)
    else:
        part, broken, parts = _json_fields(source)
    line = F.col("line")
    problem = F.when(~F.is_valid_utf8(line), F.lit("not valid UTF-8")).otherwise(broken)
    return rows.withColumn("parts", parts).select(
        *[part[role].alias(role) for role in ROLES],
        F.make_valid_utf8(line).alias("line"),
        problem.alias("problem"),
        *PLACE,
    )


def position(source: SourceSettings) -> Column:
    """bigint that orders rows as the source does, from PLACE: file number, then place in the file.

    A text row's place is the start of its block plus its number in the partition. This keeps the order: a block has
    more bytes than rows, and only the last block of a file shares its partition with other files.
    """
    in_partition = F.monotonically_increasing_id().bitwiseAND(F.lit((1 << ROW_BITS) - 1))
    in_file = F.col("in_file") + (F.lit(0) if source.format == "parquet" else in_partition)
    return F.shiftleft("file_number", FILE_SHIFT) + in_file


Fields = tuple[dict[str, Column], Column, Column]
"""(role -> its text, why there are no fields, the column `parts` that both use)."""


def _csv_fields(files: Sequence[RawFile], source: SourceSettings) -> Fields:
    firsts = _first_lines(files) if source.header else []
    columns = _columns(files, firsts, source)
    part = {role: F.get("parts", F.lit(columns.index(getattr(source, role)))) for role in ROLES}
    # A header line of any file is not data in any file; clean.rejected() leaves out each file's own.
    again = F.col("line").isin(sorted(set(firsts))) if source.header else F.lit(False)
    wrong_size = F.coalesce(F.size("parts") != len(columns), F.lit(True))
    why = _empty_or(f"not {len(columns)} fields")
    if source.quote:
        why = F.when(_has_open_quote(F.col("line"), source.quote), F.lit("a quote that does not close")).otherwise(why)
    broken = F.when(again, F.lit(HEADER_AGAIN)).when(wrong_size, why)
    return part, broken, _csv_parts(F.col("line"), columns, source)


def _has_open_quote(line: Column, quote: str) -> Column:
    return (F.length(line) - F.length(F.replace(line, F.lit(quote), F.lit("")))) % 2 == 1


def _json_fields(source: SourceSettings) -> Fields:
    names = [getattr(source, role) for role in ROLES]
    record = StructType([StructField(name, StringType()) for name in dict.fromkeys(names)])
    # With brackets added, text after the object makes the array malformed, or longer than 1.
    objects = F.from_json(F.concat(F.lit("["), F.col("line"), F.lit("]")), ArrayType(record))
    first = F.get("parts", F.lit(0))
    part = {role: first.getField(name) for role, name in zip(ROLES, names, strict=True)}
    broken = F.when(F.coalesce(F.size("parts") != 1, F.lit(True)) | first.isNull(), _empty_or("not one JSON object"))
    for role in ROLES:
        nested = part[role].startswith("{") | part[role].startswith("[")
        broken = broken.when(nested, F.lit(f"{getattr(source, role)} is no text and no number"))
    return part, broken, objects


def _empty_or(problem: str) -> Column:
    return F.when(F.trim("line") == "", F.lit("an empty line")).otherwise(F.lit(problem))


def _csv_parts(line: Column, columns: list[str], source: SourceSettings) -> Column:
    """The fields of a line as an array of text; null if a quote does not close. Lines without quotes are split."""
    split = F.split(line, re.sub(r"(\W)", r"\\\1", source.separator))
    if not source.quote:
        return split
    names = [f"c{number}" for number in range(len(columns))]
    schema = ", ".join(f"{name} string" for name in [*names, CORRUPT])
    options = {
        "sep": source.separator,
        "quote": source.quote,
        "escape": source.quote,
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": CORRUPT,
    }
    record = F.from_csv(line, schema, options)
    is_whole = ~_has_open_quote(line, source.quote) & record[CORRUPT].isNull()
    quoted = F.when(is_whole, F.array(*[record[name] for name in names]))
    return F.when(F.contains(line, F.lit(source.quote)), quoted).otherwise(split)


def _read_parquet(spark: SparkSession, files: Sequence[RawFile], source: SourceSettings) -> DataFrame:
    roles = [getattr(source, role) for role in ROLES]
    with files[0].location.open() as content:
        found = pq.read_schema(content)
    fields = {name: _plain_type(found.field(name).type) for name in roles}
    # Other columns are not read: Spark would fail on a column that it has no type for.
    schema = StructType([StructField(name, from_arrow_type(kind)) for name, kind in fields.items()])
    records = spark.read.schema(schema).parquet(*[_spark_path(f.location) for f in files])
    rows = _with_place(records, files, F.col("_metadata.row_index"))
    text = F.to_json(F.struct(*[column(name) for name in fields]))
    values = [column(name).alias(role) for role, name in zip(ROLES, roles, strict=True)]
    return rows.select(*values, text.alias("line"), F.lit(None).cast("string").alias("problem"), *PLACE)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without Arrow's dictionary encoding and large strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) else kind


def _with_place(frame: DataFrame, files: Sequence[RawFile], in_file: Column) -> DataFrame:
    """Adds PLACE. Metadata columns are lost in a join, so they become normal columns before it."""
    if len(files) == 1:
        return frame.withColumns({"in_file": in_file, "file_number": F.lit(0).cast("bigint")})
    numbers = {_plain(f.location.uri): number for number, f in enumerate(files)}
    paths = [re.sub("^file:/+", "file:/", uri) for uri in frame.inputFiles()]  # the form in the metadata column
    found = [(path, numbers[_plain(urllib.parse.unquote(path))]) for path in paths]
    table = frame.sparkSession.createDataFrame(found, "file_path string, file_number bigint")
    placed = frame.withColumns({"in_file": in_file, "file_path": F.col("_metadata.file_path")})
    placed = placed.join(F.broadcast(table), on="file_path", how="left")
    unknown = F.raise_error(F.concat(F.lit("no such raw file: "), "file_path")).cast("bigint")
    return placed.withColumn("file_number", F.coalesce("file_number", unknown))


def _plain(uri: str) -> str:
    return re.sub("^file:/+", "/", uri)


def _spark_path(location: Location) -> str:
    return f"file://{location.uri}" if location.is_local else location.uri


def check_files(files: Sequence[RawFile], source: SourceSettings) -> None:
    """Raises InputError for files that do not match the settings, before Spark is started."""
    if source.format == "csv":
        _columns(files, _first_lines(files) if source.header else [], source)
    elif source.format == "parquet":
        with ThreadPoolExecutor(THREADS) as pool:
            layouts = list(pool.map(lambda file: _parquet_layout(source, file), files))
        for file, layout in zip(files, layouts, strict=True):
            for name, kind in layout.items():
                if kind != layouts[0][name]:
                    first = f"{files[0].location} has {layouts[0][name]}"
                    raise InputError(
                        f"{file.location}: column {name!r} is {kind}, {first}; give all files the same type"
                    )


def _first_lines(files: Sequence[RawFile]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_first_line, files))


def _first_line(file: RawFile) -> str:
    """The first line as Spark reads it, without a byte-order mark."""
    try:
        with file.location.filesystem.open_input_stream(file.location.fs_path) as content:
            start = content.read(FIRST_READ)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file.location} cannot be read ({error}); is it compressed as its name says?") from None
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file.location} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    line = re.split(rb"\r\n|\r|\n", start, maxsplit=1)[0]
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file.location}: its first line is not UTF-8; convert it: iconv -t UTF-8") from None


def _columns(files: Sequence[RawFile], firsts: list[str], source: SourceSettings) -> list[str]:
    """The column names of a text source. Raises InputError for files that differ or lack one."""
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
    _require_columns(source, columns, files[0])
    return columns


def _fields(line: str, source: SourceSettings) -> list[str]:
    if len(source.separator) == 1:
        return next(csv.reader([line], delimiter=source.separator, quotechar=source.quote or None), [])
    return line.split(source.separator) if line else []


def column(name: str) -> Column:
    """A column by its name, which may contain any characters."""
    return F.col("`" + name.replace("`", "``") + "`")


def _parquet_layout(source: SourceSettings, file: RawFile) -> dict[str, pa.DataType]:
    """The types of the four columns. Raises InputError for types that cannot hold an id, relevance or time."""
    try:
        with file.location.open() as content:
            schema = pq.read_schema(content)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file.location} is not a Parquet file ({error})") from error
    _require_columns(source, schema.names, file)
    layout = {role: _plain_type(schema.field(getattr(source, role)).type) for role in ROLES}
    for role, kind in layout.items():
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise InputError(f"{file.location}: column {getattr(source, role)!r} (source.{role}) is {kind}; flatten it")
    time = layout["timestamp"]
    readable = (pa.types.is_integer, pa.types.is_float64, pa.types.is_string, pa.types.is_timestamp, pa.types.is_date32)
    if not any(is_kind(time) for is_kind in readable) or (pa.types.is_timestamp(time) and time.unit == "ns"):
        way_out = "write it as timestamp[us], as a date, or as whole seconds since 1970"
        raise InputError(f"{file.location}: column {source.timestamp!r} (source.timestamp) is {time}; {way_out}")
    return {getattr(source, role): kind for role, kind in layout.items()}


def _require_columns(source: SourceSettings, columns: list[str], file: RawFile) -> None:
    lowered = [name.lower() for name in columns]
    for name in columns:
        if source.format == "parquet" and lowered.count(name.lower()) > 1:
            raise InputError(f"{file.location}: Spark cannot distinguish column {name!r} from another; rename it")
    for role in ROLES:
        name = getattr(source, role)
        if name not in columns:
            raise InputError(f"{file.location} has no column {name!r} (source.{role}); {nearest(name, columns)}")
        if columns.count(name) > 1:
            raise InputError(f"{file.location} has {columns.count(name)} columns {name!r} (source.{role}); rename one")
