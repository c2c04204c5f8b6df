"""Checks a whole prepared data set: files against the manifest, and content against the schema."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.data.schema import (
    ITEMS_NAME,
    ITEMS_SCHEMA,
    QUARANTINE,
    SCHEMAS,
    TITLES_NAME,
    TITLES_SCHEMA,
    USERS,
    Manifest,
    how_to_prepare,
    read_manifest,
    schema_differences,
    verify_files,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
ROWS_AT_ONCE = 8192


def verify(directory: Location) -> Manifest:
    """Reads every file. Returns the manifest, or raises InputError naming the first file that is wrong."""
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    verify_content(directory, manifest)
    return manifest


def verify_content(directory: Location, manifest: Manifest) -> None:
    """Checks schemas, row counts, ids, lists and targets of all files.

    Raises InputError naming the file and what is wrong.
    """
    _verify_items(directory, manifest)
    if any(entry.path == TITLES_NAME for entry in manifest.files):
        _verify_titles(directory / TITLES_NAME, manifest)
    for part in (*manifest.splits, USERS, QUARANTINE):
        rows = 0
        seen_users: list[pa.Array] = []
        for entry in manifest.files_of(part):
            file = directory / entry.path
            found = 0
            for batch in _batches(file, manifest.schema_of(part)):
                found += batch.num_rows
                if part != QUARANTINE:
                    _verify_lists(file, batch, manifest)
                    seen_users.append(batch["user_id"])
            _require(found == entry.rows, file, f"{found} rows, the manifest says {entry.rows}")
            rows += found
        stage = {"train": "train_users", QUARANTINE: "quarantined"}.get(part, part)
        counted = manifest.counts[stage]["rows" if part == QUARANTINE else "users"]
        _require(rows == counted, directory / part, f"{rows} rows, the manifest counts {counted}")
        if seen_users:
            distinct = pc.count_distinct(pa.chunked_array(seen_users)).as_py()
            _require(distinct == rows, directory / part, f"{rows} rows of {distinct} users; each user must have one")


def _verify_items(directory: Location, manifest: Manifest) -> None:
    file = directory / ITEMS_NAME
    tables = [pa.Table.from_batches([batch]) for batch in _batches(file, ITEMS_SCHEMA)]
    items = pa.concat_tables(tables) if tables else ITEMS_SCHEMA.empty_table()
    dense = np.array_equal(items["item_id"].to_numpy(), np.arange(1, manifest.num_items + 1))
    _require(dense, file, f"item_id that is not 1..{manifest.num_items} in order")
    distinct = pc.count_distinct(items["raw_item_id"]).as_py()
    _require(distinct == len(items), file, "a raw_item_id twice")
    actions = pc.sum(items["num_positive"]).as_py() + pc.sum(items["num_negative"]).as_py()
    rows = manifest.counts["train"]["rows"]
    _require(actions == rows, file, f"{actions} train interactions, the manifest counts {rows}")


def _verify_titles(file: Location, manifest: Manifest) -> None:
    ids = [batch["item_id"].to_numpy() for batch in _batches(file, TITLES_SCHEMA)]
    items = np.concatenate([np.empty(0, np.int32), *ids])
    inside = len(items) == 0 or (items[0] >= 1 and items[-1] <= manifest.num_items and (np.diff(items) > 0).all())
    _require(bool(inside), file, f"item_id that is not ascending within 1..{manifest.num_items}")


def _verify_lists(file: Location, batch: pa.RecordBatch, manifest: Manifest) -> None:
    names = [field.name for field in batch.schema if pa.types.is_list(field.type)]
    for name in names:
        lists = batch[name]
        values = lists.flatten()
        _require(lists.null_count == 0 and values.null_count == 0, file, f"nulls in {name}")
        if not name.endswith("seen_items"):
            longest = pc.max(lists.value_lengths()).as_py() or 0
            most = manifest.settings["max_history"]
            limit = 2 * most if name.startswith("before_") else most  # with those that holdout_items replace
            _require(longest <= limit, file, f"a list of {longest} {name}; max_history is {most}")
        if pa.types.is_int32(values.type) and len(values):
            bounds = pc.min_max(values).as_py()
            inside = bounds["min"] >= 1 and bounds["max"] <= manifest.num_items
            _require(inside, file, f"{name} outside 1..{manifest.num_items}")
    _verify_sides(file, batch, "")
    if "num_holdout" in batch.schema.names:
        more = pc.any(pc.greater(batch["num_holdout"], batch["items"].value_lengths())).as_py()
        _require(not more, file, "num_holdout larger than the number of items")
        _require(_seen_holds(batch, ""), file, "items that are not in seen_items")
    if "target_item" in batch.schema.names:
        targets = pc.min_max(batch["target_item"]).as_py()
        inside = batch.num_rows == 0 or (targets["min"] >= 1 and targets["max"] <= manifest.num_items)
        _require(inside, file, f"target_item outside 1..{manifest.num_items}")
        before = pc.min(batch["target_timestamp"]).as_py()
        _require(batch.num_rows == 0 or before >= manifest.split_timestamp, file, "a target before the split")
    if "holdout_items" in batch.schema.names:
        _verify_sides(file, batch, "before_")
        _require(_seen_holds(batch, "before_"), file, "before_items that are not in before_seen_items")
        _verify_holdout(file, batch, manifest.split_timestamp)


def _verify_holdout(file: Location, batch: pa.RecordBatch, split: int) -> None:
    """The columns holdout_* of a user are of one length and end with the target; timestamps ascend from T on."""
    for name, target in (
        ("holdout_items", "target_item"),
        ("holdout_is_positive", "target_is_positive"),
        ("holdout_timestamps", "target_timestamp"),
    ):
        ends = np.cumsum(batch[name].value_lengths().to_numpy())
        values = batch[name].flatten().to_numpy(zero_copy_only=False)
        last = values[ends - 1] if len(values) else ends
        same = (np.diff(ends, prepend=0) > 0).all() and np.array_equal(last, batch[target])
        _require(bool(same), file, f"{name} that do not end with {target}")
        same = batch["holdout_items"].value_lengths().equals(batch[name].value_lengths())
        _require(same, file, f"holdout_items and {name} of different lengths")
    lists = batch["holdout_timestamps"]
    times, starts = lists.flatten().to_numpy(), np.cumsum(lists.value_lengths().to_numpy())[:-1]
    ascends = np.diff(times) >= 0
    ascends[starts - 1] = True  # from one user to the next
    ascends = ascends.all() and (times >= split).all()
    _require(bool(ascends), file, "holdout_timestamps that do not ascend from T")


def _verify_sides(file: Location, batch: pa.RecordBatch, prefix: str) -> None:
    """The lists of all items, of likes and of dislikes agree. prefix: of the columns' names."""
    items, flags = f"{prefix}items", f"{prefix}is_positive"
    same = batch[items].value_lengths().equals(batch[flags].value_lengths())
    _require(same, file, f"{items} and {flags} of different lengths")
    for name, side in ((f"{prefix}positive_items", True), (f"{prefix}negative_items", False)):
        _require(_ends_agree(batch, prefix, name, side), file, f"{name} that {items} and {flags} contradict")


def _seen_holds(batch: pa.RecordBatch, prefix: str) -> bool:
    """Whether seen_items are ascending and contain all items of the user."""
    pairs = []
    for name in (f"{prefix}items", f"{prefix}seen_items"):
        owner = np.repeat(np.arange(batch.num_rows), batch[name].value_lengths().to_numpy())
        pairs.append(owner.astype(np.int64) << 32 | batch[name].flatten().to_numpy())
    items, seen = pairs
    return bool((np.diff(seen) > 0).all() and np.isin(items, seen).all())


def _ends_agree(batch: pa.RecordBatch, prefix: str, name: str, side: bool) -> bool:
    """Whether the newest entries of one side's list agree with items and is_positive."""
    items, flags = batch[f"{prefix}items"], batch[f"{prefix}is_positive"].flatten().to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(batch.num_rows), items.value_lengths().to_numpy())
    chosen = flags == side
    expected, expected_owner = items.flatten().to_numpy()[chosen], owner[chosen]
    lengths = batch[name].value_lengths().to_numpy()
    counts = np.bincount(expected_owner, minlength=batch.num_rows)
    if (counts > lengths).any():
        return False
    ends = np.cumsum(lengths)
    places = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
    return bool(np.array_equal(batch[name].flatten().to_numpy()[places], expected))


def _batches(file: Location, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with file.open() as content:
        parquet = pq.ParquetFile(content)
        found = parquet.schema_arrow
        _require(found.equals(schema), file, schema_differences(found, schema))
        yield from parquet.iter_batches(ROWS_AT_ONCE)


def _require(ok: bool, place: Location, found: str) -> None:
    if not ok:
        raise InputError(f"{place} has {found}; rebuild it: {how_to_prepare(_data_set(place))}")


def _data_set(place: Location) -> str:
    return place.parent.parent.name if place.parent.name in SCHEMAS else place.parent.name
