"""The raw files of a data set: found by name or glob, with size and sha256, and their first lines."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from pnfrec_dist.config.source_settings import SourceSettings, TitlesSettings
from pnfrec_dist.data.schema import FileEntry
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.files.locations import Location
from spark_jobs.fetch import raw_directory
from spark_jobs.file_hints import looks_like

ROLES = ("user", "item", "relevance", "timestamp")
FIRST_READ = 1 << 20
THREADS = 16


class RawPlace(Protocol):
    """The settings that say where the raw data are."""

    @property
    def raw(self) -> str: ...

    @property
    def source(self) -> SourceSettings: ...

    @property
    def titles(self) -> TitlesSettings: ...


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


def find_raw(name: str, place: RawPlace) -> list[RawFile]:
    """The raw files, in name order, in place.raw, else in source.directory, else in data/raw/<name>.

    Raises InputError if one of the first two is given and holds no such file. Else the list may be empty.
    """
    given = place.raw or place.source.directory
    if not given:
        return _logs(Location(raw_directory(name)), place)
    directory = Location(given)
    if directory.is_file():
        return _matches(directory.parent, directory.name)
    if not directory.is_dir():
        raise InputError(f"raw directory {given!r} does not exist; RAW (--raw) must hold {place.source.files!r}")
    files = _logs(directory, place)
    if not files:
        raise InputError(f"no file {place.source.files!r} in {directory}; pass RAW=<directory that holds it> (--raw)")
    return files


def in_order(files: Sequence[RawFile], by: str) -> list[RawFile]:
    """The files by their `path` in the raw directory, or by their `name` without directories."""
    if by == "path":
        return sorted(files, key=lambda file: file.name)
    return sorted(files, key=lambda file: (file.name.rsplit("/", 1)[-1], file.name))


def _logs(directory: Location, place: RawPlace) -> list[RawFile]:
    """The files that match source.files, without the file of the titles."""
    files = _matches(directory, place.source.files)
    return [file for file in files if file.name != place.titles.file] if len(files) > 1 else files


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


def first_lines(files: Sequence[RawFile], encoding: str) -> list[str]:
    """The first line of each file as Spark reads it, without a byte-order mark."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda file: _first_line(file, encoding), files))


def _first_line(file: RawFile, encoding: str) -> str:
    try:
        with file.location.filesystem.open_input_stream(file.location.fs_path) as content:
            start = content.read(FIRST_READ)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file.location} cannot be read ({error}); is it compressed as its name says?") from None
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file.location} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    line = re.split(rb"\r\n|\r|\n", start, maxsplit=1)[0]
    try:
        return line.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        way_out = "set source.encoding (latin-1, cp1252, gb18030, ...)"
        raise InputError(f"{file.location}: its first line is not {encoding.upper()}; {way_out}") from None


def require_columns(source: SourceSettings, columns: list[str], file: RawFile) -> None:
    lowered = [name.lower() for name in columns]
    for name in columns:
        if source.format == "parquet" and lowered.count(name.lower()) > 1:
            raise InputError(f"{file.location}: Spark cannot distinguish column {name!r} from another; rename it")
    if source.format == "parquet" and "_metadata" in columns:
        raise InputError(f"{file.location}: Spark has a column '_metadata' of its own; rename it")
    for role, name in source.columns().items():
        if name not in columns:
            hint = looks_like(file.location, source) if len(columns) == 1 else ""
            way_out = hint or nearest(name, columns)
            raise InputError(f"{file.location} has no column {name!r} (source.{role}); {way_out}")
        if columns.count(name) > 1:
            raise InputError(f"{file.location} has {columns.count(name)} columns {name!r} (source.{role}); rename one")
