"""Each holdout user's interactions, as they are read from a prepared data set, and the version that lacks them."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.earlier_version import to_version_3

from pnfrec_dist.data.prepared import TRAINING_PARTS, PreparedData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import SCHEMA_VERSION, read_manifest, write_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.verify import verify

COLUMNS = {
    "before_items": "before_items",
    "before_is_positive": "before_is_positive",
    "before_positive": "before_positive_items",
    "before_negative": "before_negative_items",
    "before_seen": "before_seen_items",
    "items": "holdout_items",
    "is_positive": "holdout_is_positive",
    "timestamps": "holdout_timestamps",
}


def rows_of(lists: Ragged) -> list[list]:
    return [lists.row(number).tolist() for number in range(len(lists))]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_list_holds_its_column_in_the_order_of_the_users(prepared: Path, split: str) -> None:
    data = open_prepared(prepared)
    found = data.holdout_interactions(split)
    assert data.has_points and found is not None
    stored = [row for file in sorted((prepared / split).iterdir()) for row in pq.read_table(file).to_pylist()]
    assert [row["user_id"] for row in stored] == data.user_ids(split).to_pylist()
    for name, column in COLUMNS.items():
        assert rows_of(getattr(found, name)) == [row[column] for row in stored], name
    assert found.max_history == 200


@pytest.mark.parametrize(("rule", "replaces"), [("keep_all", False), ("keep_first", False), ("keep_last", True)])
def test_only_keep_last_replaces(prepared: Path, rule: str, replaces: bool) -> None:
    manifest = read_manifest(prepared)
    settings = {**manifest.settings, "clean": {"duplicates": rule}}
    data = PreparedData(Location(prepared), dataclasses.replace(manifest, settings=settings))
    found = data.holdout_interactions("test")
    assert found is not None and found.replaces is replaces


def test_the_earlier_version_is_read_without_them(prepared: Path) -> None:
    now = rows_of(open_prepared(prepared).holdout("test").history)
    to_version_3(prepared)
    data = open_prepared(prepared).require_whole(*TRAINING_PARTS)
    assert verify(Location(prepared)).schema_version == 3 != SCHEMA_VERSION
    assert not data.has_points and data.holdout_interactions("test") is None
    assert rows_of(data.holdout("test").history) == now


@pytest.mark.parametrize("version", [3, SCHEMA_VERSION])
def test_columns_of_the_other_version_are_refused(prepared: Path, version: int) -> None:
    if version != 3:
        to_version_3(prepared)
    write_manifest(prepared, dataclasses.replace(read_manifest(prepared), schema_version=version))
    what = f"has {'unknown' if version == 3 else 'no'} columns before_items, before_is_positive, "
    with pytest.raises(InputError, match=f"validation/part-00000.parquet {what}.*timestamps; rebuild"):
        open_prepared(prepared).holdout("validation")
    with pytest.raises(InputError, match=f"validation/part-00000.parquet {what}"):
        verify(Location(prepared))
