"""The contract between Spark, which writes a prepared data set, and torch, which reads it.

Layout of a prepared data set (a directory):

    manifest.json                 counts, sources and settings of the build; size and sha256 of every file
    items.parquet                 the catalog, item_id 1..num_items
    train/part-*.parquet          one row per training user
    validation/part-*.parquet     one row per holdout user: history before the target, and the target; then the
                                  interactions from T on, and the lists before them
    test/part-*.parquet           the same (neither of the two with split.holdout none)
    users/part-*.parquet          one row per user (training user or not): the whole history, to recommend from
    titles.parquet                the items' titles, if the source has them
    quarantine/part-*.parquet     rejected source rows with their reason
    report.html                   a description of the build, for people
    _SUCCESS                      written last; holds the sha256 of manifest.json
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.content_hash import has_sha256
from pnfrec_dist.files.locations import Location, reading

SCHEMA_VERSION = 5
READ_VERSIONS = (3, 5)
"""Version 3 has no INTERACTIONS in validation/ and test/; all else is the same."""
PAD_ID = 0
"""item_id of padding; real items are 1..num_items."""
FEW_TARGETS = 100
"""With fewer liked targets, a metric says little."""

MANIFEST_NAME = "manifest.json"
SUCCESS_NAME = "_SUCCESS"
ITEMS_NAME = "items.parquet"
TITLES_NAME = "titles.parquet"
REPORT_NAME = "report.html"
SPLITS = ("train", "validation", "test")
USERS = "users"
QUARANTINE = "quarantine"

_ITEM_IDS = pa.list_(pa.int32())
_HISTORY = [
    pa.field("user_id", pa.string()),
    pa.field("items", _ITEM_IDS),
    pa.field("is_positive", pa.list_(pa.bool_())),
    pa.field("positive_items", _ITEM_IDS),
    pa.field("negative_items", _ITEM_IDS),
]
TRAIN_SCHEMA = pa.schema(_HISTORY)
INTERACTIONS = [
    pa.field("before_items", _ITEM_IDS),
    pa.field("before_is_positive", pa.list_(pa.bool_())),
    pa.field("before_positive_items", _ITEM_IDS),
    pa.field("before_negative_items", _ITEM_IDS),
    pa.field("before_seen_items", _ITEM_IDS),
    pa.field("holdout_items", _ITEM_IDS),
    pa.field("holdout_is_positive", pa.list_(pa.bool_())),
    pa.field("holdout_timestamps", pa.list_(pa.int64())),
]
"""holdout_*: the newest max_history interactions at or after T, up to the target, oldest first.

before_*: the lists before the first of them: the newest max_history entries that none of holdout_items replaces
(clean.duplicates: keep_last), and those among these that one replaces. before_seen_items are all, ascending.
"""
HOLDOUT_SCHEMA = pa.schema(
    [
        *_HISTORY,
        pa.field("seen_items", _ITEM_IDS),
        pa.field("target_item", pa.int32()),
        pa.field("target_is_positive", pa.bool_()),
        pa.field("target_timestamp", pa.int64()),
        *INTERACTIONS,
    ]
)
USERS_SCHEMA = pa.schema([*_HISTORY, pa.field("seen_items", _ITEM_IDS), pa.field("num_holdout", pa.int32())])
"""num_holdout: how many of `items` (the newest ones) are at or after T."""
ITEMS_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.int32()),
        pa.field("raw_item_id", pa.string()),
        pa.field("num_positive", pa.int64()),
        pa.field("num_negative", pa.int64()),
    ]
)
TITLES_SCHEMA = pa.schema([pa.field("item_id", pa.int32()), pa.field("title", pa.string())])
QUARANTINE_SCHEMA = pa.schema(
    [pa.field("source_file", pa.string()), pa.field("row", pa.string()), pa.field("reason", pa.string())]
)
SCHEMAS = {
    "train": TRAIN_SCHEMA,
    "validation": HOLDOUT_SCHEMA,
    "test": HOLDOUT_SCHEMA,
    USERS: USERS_SCHEMA,
    QUARANTINE: QUARANTINE_SCHEMA,
    ITEMS_NAME: ITEMS_SCHEMA,
    TITLES_NAME: TITLES_SCHEMA,
}


@dataclass(frozen=True)
class FileEntry:
    """One file of the data set or of its source: path relative to its directory, with size and sha256."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    counts: stage -> {"rows"|"users"|"items"|...: int}; settings: the data set's resolved settings;
    threshold: relevance at and above which feedback is positive (labels count as 1 and 0);
    split_timestamp: T; without a holdout, one after the newest timestamp. It and target_timestamp are whole numbers of
    timestamp_unit ("s", "ms", "us" or "ns") since 1970-01-01 UTC, numbers of rows ("rows"), or numbers of a clock of
    the source's own ("number"); conf: the settings of conf/dataset/ at that time, if flags changed them.
    """

    schema_version: int
    dataset: str
    settings: dict[str, Any]
    settings_hash: str
    sources: list[FileEntry]
    counts: dict[str, dict[str, int]]
    threshold: float
    split_timestamp: int
    timestamp_unit: str
    files: list[FileEntry]
    conf: dict[str, Any] | None = None

    @property
    def num_items(self) -> int:
        return self.counts["train"]["items"]

    @property
    def has_holdout(self) -> bool:
        """Whether there are validation and test users (split.holdout)."""
        return self.settings.get("split", {}).get("holdout") != "none"

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of SPLITS that the data set has."""
        return SPLITS if self.has_holdout else SPLITS[:1]

    @property
    def has_interactions(self) -> bool:
        """Whether validation/ and test/ have INTERACTIONS."""
        return self.schema_version > 3

    def warnings(self) -> list[str]:
        """What few_liked_targets says of validation and test."""
        found = (few_liked_targets(part, self.counts[part]["positive_targets"]) for part in self.splits[1:])
        return [text for text in found if text]

    def schema_of(self, part: str) -> pa.Schema:
        """The columns of a sub-directory or a file, in the data set's own version."""
        left_out = () if self.has_interactions else INTERACTIONS
        return pa.schema([field for field in SCHEMAS[part] if field not in left_out])

    @property
    def digest(self) -> str:
        """A hash of the content that trainings and evaluations read: equal digests mean equal data for them.

        The report, titles and users/ are left out.
        """
        left_out = {REPORT_NAME, TITLES_NAME, *(entry.path for entry in self.files_of(USERS))}
        lines = sorted(f"{entry.path} {entry.sha256}" for entry in self.files if entry.path not in left_out)
        return _sha256("\n".join(lines).encode())

    def files_of(self, part: str) -> list[FileEntry]:
        """The entries of one sub-directory in name order, or the entry of one file."""
        return sorted((e for e in self.files if e.path == part or e.path.startswith(part + "/")), key=lambda e: e.path)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"


def few_liked_targets(part: str, count: int) -> str:
    """A warning if fewer than FEW_TARGETS users of "validation" or "test" have a liked target; else empty."""
    if count >= FEW_TARGETS:
        return ""
    users = f"{part} user has" if count == 1 else f"{part} users have"
    return f"only {count} {users} a liked target: one of them is worth {1 / max(count, 1):.3f} of HR_p"


def schema_differences(found: pa.Schema, expected: pa.Schema) -> str:
    """What a file with another schema than expected has: "no column x", "x as int64 instead of int32"."""
    missing = [name for name in expected.names if name not in found.names]
    other = [name for name in found.names if name not in expected.names]
    if missing or other:
        parts = {"no": missing, "unknown": other}
        return " and ".join(
            f"{what} {'column' if len(names) == 1 else 'columns'} {', '.join(names)}"
            for what, names in parts.items()
            if names
        )
    types = [
        f"{field.name} as {found.field(field.name).type} instead of {field.type}"
        for field in expected
        if found.field(field.name).type != field.type
    ]
    return ", ".join(types) if types else "its columns in another order, or other nulls"


def settings_hash(settings: dict[str, Any]) -> str:
    """sha256 of settings as canonical JSON."""
    return _sha256(json.dumps(settings, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_manifest(directory: Path | Location, manifest: Manifest) -> None:
    """Writes manifest.json, then _SUCCESS, which makes the data set whole."""
    content = manifest.to_json().encode()
    (Location(directory) / MANIFEST_NAME).write_bytes(content)
    (Location(directory) / SUCCESS_NAME).write_bytes(f"{_sha256(content)}\n".encode())


def read_manifest(directory: Path | Location) -> Manifest:
    """Reads manifest.json. Raises InputError if the data set is missing, half-written or of another version."""
    directory = Location(directory)
    path = directory / MANIFEST_NAME
    rebuild = _rebuild(directory)
    if not directory.is_dir():
        raise InputError(f"no prepared data set at {directory}; build it: {how_to_prepare(directory.name)}")
    if not (directory / SUCCESS_NAME).is_file():
        if not path.is_file():
            raise InputError(f"{directory} holds no whole data set (no {MANIFEST_NAME}); name another, or {rebuild}")
        raise InputError(f"{directory} is half-written: it has no {SUCCESS_NAME}; {rebuild}")
    if not path.is_file():
        raise InputError(f"{directory} has no {MANIFEST_NAME}; {rebuild}")
    text = path.read_bytes()
    if (directory / SUCCESS_NAME).read_bytes().decode("ascii", errors="replace").strip() != _sha256(text):
        raise InputError(f"{path} does not match its sha256 in {SUCCESS_NAME}; {rebuild}")
    try:
        raw = json.loads(text)
        version = raw["schema_version"]
        if version not in READ_VERSIONS:
            readable = " and ".join(map(str, READ_VERSIONS))
            raise InputError(f"{path} has schema version {version}, this program reads {readable}; {rebuild}")
        raw["sources"] = [FileEntry(**entry) for entry in raw["sources"]]
        raw["files"] = [FileEntry(**entry) for entry in raw["files"]]
        manifest = Manifest(**raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a manifest ({error}); {rebuild}") from error
    return manifest


def check_listing(directory: Path | Location, manifest: Manifest) -> None:
    """Compares the files below `directory` with the manifest by name and size, without reading them.

    Raises InputError naming the first file that is missing, unlisted, or of other size.
    """
    directory = Location(directory)
    listed = {entry.path: entry for entry in manifest.files}
    sizes = directory.files()
    for extra in sorted(sizes.keys() - listed.keys() - {MANIFEST_NAME, SUCCESS_NAME}):
        raise InputError(f"{directory / extra} is not listed in the manifest; {_rebuild(directory)}")
    for path, entry in sorted(listed.items()):
        file = directory / path
        if path not in sizes:
            raise InputError(f"{file} is listed in the manifest but missing; {_rebuild(directory)}")
        if sizes[path] != entry.bytes:
            found = f"{file} has {sizes[path]} bytes, the manifest says {entry.bytes}"
            raise InputError(f"{found}; {_rebuild(directory)}")


def require_content(file: Location, sha256: str, directory: Location) -> None:
    """Compares a file of the data set in `directory` with its sha256, once per machine (files/content_hash.py).

    Raises InputError naming the file.
    """
    with reading(file, _rebuild(directory)):
        matches = has_sha256(file, sha256)
    if not matches:
        raise InputError(f"{file} does not match its sha256 in the manifest; {_rebuild(directory)}")


def verify_files(directory: Path | Location, manifest: Manifest) -> None:
    """Compares every file below `directory` with the manifest: names, sizes, sha256. Raises InputError as above."""
    check_listing(directory, manifest)
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        require_content(Location(directory) / entry.path, entry.sha256, Location(directory))


def _rebuild(directory: Location) -> str:
    return f"rebuild it: {how_to_prepare(directory.name)}"


def how_to_prepare(name: str) -> str:
    """The commands that prepare a data set."""
    return f"pnfrec prep --dataset {name} (or: make spark-prep DATASET={name})"


def how_to_add_points(name: str) -> str:
    """The commands that prepare a data set of an earlier version again, with the columns of many points."""
    return f"pnfrec prep --dataset {name} --force (or: make spark-prep DATASET={name} PREP_ARGS=--force)"
