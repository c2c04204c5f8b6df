"""Opens a prepared data set: checks it against its manifest and reads shards as ragged arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.config.histories import HISTORIES, History, HistoryKind
from pnfrec_dist.config.mappings import flatten
from pnfrec_dist.data.cache import mapped
from pnfrec_dist.data.holdout_interactions import HoldoutInteractions
from pnfrec_dist.data.ragged import Ragged, signed
from pnfrec_dist.data.schema import (
    INTERACTIONS,
    ITEMS_NAME,
    SPLITS,
    TITLES_NAME,
    FileEntry,
    Manifest,
    check_listing,
    how_to_prepare,
    read_manifest,
    require_content,
    schema_differences,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.content_hash import cache_directory
from pnfrec_dist.files.locations import Location

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees

TRAINING_PARTS = (ITEMS_NAME, *SPLITS)
"""What a training reads, including the test at its end."""


@dataclass(frozen=True)
class TrainData:
    """Training users, oldest interaction first."""

    history: Ragged
    """what the main encoder reads: positives, or all items with signs (ragged.py: signed)"""
    negative: Ragged | None
    """None if history contains the negatives"""

    def __len__(self) -> int:
        return len(self.history)

    @property
    def nbytes(self) -> int:
        sides = [side for side in (self.history, self.negative) if side is not None]
        return sum(side.values.nbytes + side.offsets.nbytes for side in sides)


@dataclass(frozen=True)
class HoldoutData:
    """Holdout users, or points: what the main encoder reads (as in TrainData) before the target, seen items, target."""

    history: Ragged
    seen: Ragged
    target_item: np.ndarray
    target_is_positive: np.ndarray
    negative: Ragged | None = None
    """dislikes before the target, if they were asked for"""

    def __len__(self) -> int:
        return len(self.target_item)

    def part(self, rows: np.ndarray) -> "HoldoutData":
        """These rows, in this order."""
        return HoldoutData(
            self.history.take(rows),
            self.seen.take(rows),
            self.target_item[rows],
            self.target_is_positive[rows],
            self.negative.take(rows) if self.negative is not None else None,
        )


@dataclass(frozen=True)
class PreparedData:
    """A prepared data set. A file is compared with the manifest before it is first read, once per machine."""

    directory: Location
    manifest: Manifest

    @property
    def num_items(self) -> int:
        return self.manifest.num_items

    def require_whole(self, *parts: str) -> "PreparedData":
        """Compares all files of these parts (TRAINING_PARTS, ...) with the manifest, in content, columns and rows.

        Raises InputError naming the file.
        """
        for part in parts:
            for entry in self.manifest.files_of(part):
                self._require_file(entry)
        return self

    def _require_file(self, entry: FileEntry) -> None:
        require_content(self.directory / entry.path, entry.sha256, self.directory)
        _require_schema(self.directory / entry.path, self.manifest.schema_of(entry.path.partition("/")[0]), entry.rows)

    def train(self, history: History = "positive") -> TrainData:
        """The training users' lists, memory-mapped from this machine's cache. The first process to ask fills it."""
        kind = HISTORIES[history]
        sides = [] if kind.holds_negatives else ["negative_items"]

        def read() -> dict[str, Ragged]:
            table = self._read("train", list(dict.fromkeys([*kind.columns, *sides])))
            return {kind.column: self._history(table, kind), **{name: self._ragged(table, name) for name in sides}}

        # all and signed have the same lists; an entry "all" of an earlier version has no signs.
        name = "signed" if kind.holds_negatives else history
        arrays = mapped(cache_directory() / f"{self.manifest.dataset}-{self.manifest.digest[:32]}-{name}", read)
        return TrainData(arrays[kind.column], arrays.get("negative_items"))

    def holdout(self, split: str, history: History = "positive", *, with_negative: bool = False) -> HoldoutData:
        """split: "validation" or "test"."""
        kind = HISTORIES[history]
        columns = list(dict.fromkeys([*kind.columns, "seen_items", "target_item", "target_is_positive"]))
        table = self._read(split, [*columns, "negative_items"] if with_negative else columns)
        target_item = table["target_item"].to_numpy()
        _require_item_ids(target_item, self.num_items, f"{self.directory} ({split}): target_item")
        return HoldoutData(
            history=self._history(table, kind),
            seen=self._ragged(table, "seen_items"),
            target_item=target_item,
            target_is_positive=table["target_is_positive"].to_numpy(),
            negative=self._ragged(table, "negative_items") if with_negative else None,
        )

    def user_ids(self, split: str) -> pa.Array:
        """Raw ids of a split's users in the order of train() and holdout()."""
        return self._read(split, ["user_id"])["user_id"].combine_chunks()

    @property
    def has_points(self) -> bool:
        """Whether each holdout user's interactions from T on are there, not only the last one."""
        return self.manifest.has_interactions and self.manifest.has_holdout

    def holdout_interactions(self, split: str) -> HoldoutInteractions | None:
        """For the users of holdout(); None for data of version 3, which have only the last interaction."""
        if not self.has_points:
            return None
        table = self._read(split, [field.name for field in INTERACTIONS])
        settings = self.manifest.settings
        return HoldoutInteractions(
            *(self._ragged(table, field.name) for field in INTERACTIONS),
            replaces=settings.get("clean", {}).get("duplicates") == "keep_last",
            max_history=settings["max_history"],
        )

    def raw_item_ids(self) -> pa.Array:
        """The raw ids of the catalog, in order of item_id from 1."""
        return self._catalog()["raw_item_id"].combine_chunks()

    def titles(self) -> dict[str, str]:
        """Raw item id -> title, of the items that have one."""
        if not self.manifest.files_of(TITLES_NAME):
            return {}
        table = self._read(TITLES_NAME)
        raw_ids = self.raw_item_ids().take(pc.subtract(table["item_id"], 1))
        return dict(zip(raw_ids.to_pylist(), table["title"].to_pylist(), strict=True))

    def item_counts(self, *, positive_only: bool = False) -> np.ndarray:
        """Number of train interactions (or positive ones) of each item, [num_items + 1]; index 0 (padding) is 0."""
        items = self._catalog()
        counts = items["num_positive"].to_numpy()
        if not positive_only:
            counts = counts + items["num_negative"].to_numpy()
        return np.concatenate([[0], counts])

    def _catalog(self) -> pa.Table:
        items = self._read(ITEMS_NAME)
        if not np.array_equal(items["item_id"].to_numpy(), np.arange(1, self.num_items + 1)):
            raise InputError(f"{self.directory / ITEMS_NAME}: item_id is not 1..{self.num_items} in order; rebuild it")
        return items

    def _read(self, part: str, columns: list[str] | None = None) -> pa.Table:
        self.require_whole(part)
        if part in SPLITS and not self.manifest.files_of(part):
            raise InputError(f"{self.directory} has no {part} users: it was prepared with split.holdout none")
        files = [self.directory / entry.path for entry in self.manifest.files_of(part)]
        return pa.concat_tables([_read_parquet(f, columns) for f in files]).combine_chunks()

    def _history(self, table: pa.Table, kind: HistoryKind) -> Ragged:
        lists = self._ragged(table, kind.column)
        return signed(lists, self._ragged(table, "is_positive")) if kind.holds_negatives else lists

    def _ragged(self, table: pa.Table, column: str) -> Ragged:
        lists = table[column].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.chunk(0) if lists.num_chunks else pa.array([], type=lists.type)
        return ragged(lists, self.num_items, f"{self.directory}: {column}")


def ragged(lists: pa.Array, num_items: int, where: str) -> Ragged:
    """A column of lists: of item ids (int32), flags or timestamps.

    Raises InputError, with `where`, for ids outside the catalog."""
    values = lists.flatten().to_numpy(zero_copy_only=False)
    if values.dtype == np.int32:
        _require_item_ids(values, num_items, where)
    return Ragged(np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int64)]), values)


def _require_item_ids(ids: np.ndarray, num_items: int, where: str) -> None:
    if len(ids) and not (ids.min() >= 1 and ids.max() <= num_items):
        raise InputError(f"{where} holds ids outside 1..{num_items}; rebuild the data set")


def open_prepared(directory: Path | Location, expected_settings: dict[str, Any] | None = None) -> PreparedData:
    """Opens a prepared data set. Checks the manifest, and the names and sizes of the files that it lists.

    expected_settings: the current settings of conf/dataset/<name>.yaml (DatasetSettings.prepared()).
    Raises InputError naming the file, or the settings that differ.
    """
    directory = Location(directory)
    manifest = read_manifest(directory)
    if expected_settings is not None:
        _require_settings(directory, manifest, expected_settings)
    check_listing(directory, manifest)
    return PreparedData(directory, manifest)


def _read_parquet(file: Location, columns: list[str] | None = None) -> pa.Table:
    with file.open() as content:
        return pq.ParquetFile(content).read(columns=columns)


def _require_settings(directory: Location, manifest: Manifest, expected: dict[str, Any]) -> None:
    if manifest.conf is not None and flatten(manifest.conf) == flatten(expected):
        return  # flags of the preparation changed some settings; the YAML is as it was then
    built, wanted = flatten(manifest.settings), flatten(expected)
    differences = [
        f"{name} {built.get(name)!r} -> {wanted.get(name)!r}"
        for name in sorted(built.keys() | wanted.keys())
        if built.get(name) != wanted.get(name)
    ]
    if differences:
        name = directory.name
        raise InputError(
            f"{directory} was prepared with other settings than conf/dataset/{name}.yaml ({'; '.join(differences)}); "
            f"correct the YAML, or prepare the data set again: {how_to_prepare(name)}"
        )


def _require_schema(file: Location, schema: pa.Schema, rows: int | None) -> None:
    with file.open() as content:
        parquet = pq.ParquetFile(content)
        found, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    if not found.equals(schema):
        raise InputError(f"{file} has {schema_differences(found, schema)}; rebuild the data set")
    if num_rows != rows:
        raise InputError(f"{file} has {num_rows} rows, the manifest says {rows}; rebuild the data set")
