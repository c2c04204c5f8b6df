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

from pyspark.sql import DataFrame, SparkSession
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
    """The raw files that are there, sorted: below place.raw if given, else below data/raw/<name>.

    Raises InputError when place.raw is given and holds none; without it, an empty list means none yet.
    """
    if not place.raw:
        return _matches(_raw_directory(name), place.source.files)
    directory = Path(place.raw)
    if directory.is_file():
        return [directory]
    if not directory.is_dir():
        raise InputError(f"raw directory {place.raw!r} does not exist; RAW (--raw) must hold {place.source.files!r}")
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
    return sorted(p for p in directory.glob(pattern) if p.is_file())


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
        rows = spark.read.parquet(*paths)
        _require_columns(source, rows.columns, files[0])
    else:
        columns = list(source.fields) if not source.header else _header(files[0], source)
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
    uris = [Path(p).as_uri() for p in paths]
    # Spark writes file:///x as file:///x or file:/x; names are compared by their unescaped path alone.
    file_index = F.array_position(
        F.array(*[F.lit(uri.removeprefix("file://")) for uri in uris]),
        F.regexp_replace("_metadata.file_path", "^file:/+", "/"),
    )
    return rows.select(
        *rows.columns,
        (file_index - 1).cast("int").alias("source_file"),
        F.col("_metadata.file_block_start").alias("source_block"),
        F.monotonically_increasing_id().alias("source_row"),
    )


def _header(file: Path, source: SourceSettings) -> list[str]:
    opened = gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")
    try:
        with opened as content:
            line = content.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    except gzip.BadGzipFile as error:
        raise InputError(f"{file} is not gzip, as its name says; rename or compress it") from error
    if len(source.separator) == 1:
        return next(csv.reader([line], delimiter=source.separator, quotechar=source.quote or None), [])
    return line.split(source.separator)


def _require_columns(source: SourceSettings, columns: list[str], file: Path) -> None:
    for role in ("user", "item", "relevance", "timestamp"):
        name = getattr(source, role)
        if name not in columns:
            raise InputError(f"{file} has no column {name!r} (source.{role}); {nearest(name, columns)}")
