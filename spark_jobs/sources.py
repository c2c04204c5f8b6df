"""Raw files -> rows as text columns with their position; fetching what is missing."""

import csv
import gzip
import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from pnfrec_dist.config import SourceSettings
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.schema import FileEntry, sha256_of
from spark_jobs.synthetic import write_ratings

CORRUPT = "_corrupt_record"
POSITION = ("source_file", "source_block", "source_row")
"""Columns that together order rows as the source does: file (in name order), block start, row within it."""


class RawPlace(Protocol):
    """Where the raw data is looked for."""

    @property
    def raw(self) -> str: ...

    @property
    def source(self) -> SourceSettings: ...


def find_raw(name: str, place: RawPlace) -> list[Path]:
    """The raw files that are there, sorted: below place.raw, else source.directory, else data/raw/<name>.

    Raises InputError when one of the first two is given and holds none; else an empty list means none yet.
    """
    given = place.raw or place.source.directory
    if not given:
        return _matches(_raw_directory(name), place.source.files)
    directory = Path(given).expanduser()
    if directory.is_file():
        return _matches(directory.parent, directory.name)
    if not directory.is_dir():
        raise InputError(f"raw directory {given!r} does not exist; RAW (--raw) must hold {place.source.files!r}")
    files = _matches(directory, place.source.files)
    if not files:
        raise InputError(f"no file {place.source.files!r} in {directory}; pass RAW=<directory that holds it> (--raw)")
    return files


def obtain_raw(name: str, place: RawPlace) -> list[Path]:
    """Generates or fetches the raw files into data/raw/<name>. Raises InputError when there is no way to."""
    directory, source = _raw_directory(name), place.source
    if source.generator:
        print(f"generating {directory / source.files}", flush=True)
        write_ratings(directory / source.files)
    elif source.url:
        fetch(source, directory)
    else:
        raise InputError(f"no raw data: put {source.files!r} into {directory}, or pass RAW=<directory that holds it>")
    return _matches(directory, source.files)


def _raw_directory(name: str) -> Path:
    return Path("data/raw") / name


def _matches(directory: Path, pattern: str) -> list[Path]:
    """Files in name order. Raises InputError for names that Spark would skip or take for a pattern."""
    files = sorted(p for p in directory.glob(pattern) if p.is_file())
    for file in files:
        if file.name[0] in "._":
            raise InputError(f"{file}: Spark skips files whose name starts with {file.name[0]!r}; rename it")
        if set("[]{}*?\\") & set(str(file.resolve())):
            raise InputError(f"{file}: Spark takes [ ] {{ }} * ? and \\ in a path for a pattern; rename it")
    return files


def fetch(source: SourceSettings, directory: Path) -> None:
    """Downloads the official archive, checks its md5, and puts the wanted files into `directory`."""
    manual = f"download {source.url} and unzip {source.files!r} into {directory}, or pass RAW=<directory that holds it>"
    print(f"fetching {source.url}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pnfrec-fetch-") as scratch:
        archive = Path(scratch) / "archive.zip"
        try:
            with urllib.request.urlopen(source.url, timeout=30) as reply, archive.open("wb") as out:
                shutil.copyfileobj(reply, out)
        except (OSError, urllib.error.URLError) as error:
            raise InputError(f"could not fetch the raw data ({error}); {manual}") from error
        with archive.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if source.md5 and md5 != source.md5:
            raise InputError(f"{source.url} has md5 {md5}, expected {source.md5}; {manual}")
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(archive) as zipped:
                for member in zipped.infolist():
                    name = Path(member.filename).name
                    if not member.is_dir() and Path(name).match(source.files):
                        draft = directory / f".{name}.{os.getpid()}"
                        with zipped.open(member) as content, draft.open("wb") as out:
                            shutil.copyfileobj(content, out)
                        draft.replace(directory / name)
        except zipfile.BadZipFile as error:
            raise InputError(f"{source.url} did not return a zip archive ({error}); {manual}") from error


def describe_sources(files: list[Path]) -> list[FileEntry]:
    """Name, size and sha256 of each raw file."""
    return [FileEntry(path=f.name, bytes=f.stat().st_size, sha256=sha256_of(f)) for f in files]


def read_rows(spark: SparkSession, files: list[Path], source: SourceSettings) -> DataFrame:
    """All rows of the raw files: the file's columns, `_corrupt_record` for text, and POSITION.

    Text columns stay text and Parquet columns keep their types; clean.py casts. A text row with too few or too many
    fields has the whole row in `_corrupt_record`.
    """
    paths = [str(f.resolve()) for f in files]
    if source.format == "parquet":
        for file in files:
            _require_parquet(source, file)
        rows = spark.read.parquet(*paths)
    else:
        headers = [_header(f, source) for f in files] if source.header else [list(source.fields)]
        for file, header in zip(files, headers, strict=False):
            if header != headers[0]:
                raise InputError(f"{file} has columns {header}, {files[0]} has {headers[0]}; give all files the same")
        columns = headers[0]
        _require_columns(source, columns, files[0])
        schema = StructType([StructField(c, StringType()) for c in [*columns, CORRUPT]])
        rows = spark.read.csv(
            paths,
            schema=schema,
            sep=source.separator,
            header=source.header,
            quote=source.quote,
            escape=source.quote,
            mode="PERMISSIVE",
            columnNameOfCorruptRecord=CORRUPT,
        )
    # Spark gives a percent-encoded URI, in which + stands for itself.
    path = F.url_decode(F.regexp_replace(F.regexp_replace("_metadata.file_path", "^file:/+", "/"), r"\+", "%2B"))
    file_index = F.array_position(F.array(*[F.lit(p) for p in paths]), path)
    return rows.select(
        "*",
        (file_index - 1).cast("int").alias("source_file"),
        F.col("_metadata.file_block_start").alias("source_block"),
        F.monotonically_increasing_id().alias("source_row"),
    )


def _header(file: Path, source: SourceSettings) -> list[str]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as content:
            line = content.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    except gzip.BadGzipFile as error:
        raise InputError(f"{file} is not gzip, as its name says; rename or compress it") from error
    if not line:
        raise InputError(f"{file} is empty: it has not even a header; check RAW (--raw)")
    if len(source.separator) == 1:
        return next(csv.reader([line], delimiter=source.separator, quotechar=source.quote or None), [])
    return line.split(source.separator)


def column(name: str) -> Column:
    """A column by its name, whatever characters are in it."""
    quoted = name.replace("`", "``")
    return F.col(f"`{quoted}`")


def _require_parquet(source: SourceSettings, file: Path) -> None:
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a Parquet file ({error})") from error
    _require_columns(source, schema.names, file)
    time = schema.field(source.timestamp).type
    readable = pa.types.is_integer(time) or pa.types.is_string(time) or pa.types.is_timestamp(time)
    if not readable or (pa.types.is_timestamp(time) and time.unit == "ns"):
        way_out = "write it as timestamp[us], or as whole seconds since 1970"
        raise InputError(f"{file}: column {source.timestamp!r} (source.timestamp) is {time}; {way_out}")


def _require_columns(source: SourceSettings, columns: list[str], file: Path) -> None:
    lowered = [name.lower() for name in columns]
    for name in columns:
        if lowered.count(name.lower()) > 1 or name.lower() in (CORRUPT, *POSITION):
            raise InputError(f"{file}: Spark cannot tell column {name!r} from another or its own; rename it")
    for role in ("user", "item", "relevance", "timestamp"):
        name = getattr(source, role)
        if name not in columns:
            raise InputError(f"{file} has no column {name!r} (source.{role}); {nearest(name, columns)}")
