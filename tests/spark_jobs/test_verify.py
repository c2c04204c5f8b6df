"""Damage with a manifest that matches it: checksums cannot find it, so the content is checked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.data.schema import read_manifest, write_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location, sha256_of
from spark_jobs.verify import verify


def rewrite(directory: Path, name: str, change: Callable[[list[dict]], object]) -> None:
    """Changes a file's rows and updates its manifest entry."""
    path = directory / name
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    manifest = read_manifest(directory)
    entries = [
        dataclasses.replace(e, bytes=path.stat().st_size, sha256=sha256_of(path), rows=len(rows))
        if e.path == name
        else e
        for e in manifest.files
    ]
    write_manifest(directory, dataclasses.replace(manifest, files=entries))


def test_a_whole_data_set_passes(prepared: Path) -> None:
    assert verify(Location(prepared)).num_items == 12


TRAIN, TEST, ITEMS = "train/part-00000.parquet", "test/part-00000.parquet", "items.parquet"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (TRAIN, lambda rows: rows.pop(), "the manifest counts 30"),
        (TRAIN, lambda rows: rows[1].update(user_id=rows[0]["user_id"]), "30 rows of 29 users"),
        (TRAIN, lambda rows: rows[0]["items"].append(3), "of different lengths"),
        (
            TRAIN,
            lambda rows: rows[0]["positive_items"].reverse(),
            "positive_items that items and is_positive contradict",
        ),
        (TRAIN, lambda rows: rows[1]["negative_items"].append(99), r"negative_items outside 1\.\.12"),
        (TRAIN, lambda rows: rows[0].update(items=None), "nulls in items"),
        (
            TRAIN,
            lambda rows: rows[0].update(positive_items=[1] * 201),
            "a list of 201 positive_items; max_history is 200",
        ),
        (TEST, lambda rows: rows[0].update(target_item=13), r"target_item outside 1\.\.12"),
        (TEST, lambda rows: rows[0].update(target_timestamp=4), "a target before the split"),
        (TEST, lambda rows: rows[0]["holdout_items"].append(3), "holdout_items that do not end with target_item"),
        (
            TEST,
            lambda rows: rows[0].update(holdout_items=[], holdout_is_positive=[], holdout_timestamps=[]),
            "holdout_items that do not end with target_item",
        ),
        (
            TEST,
            lambda rows: rows[0]["holdout_is_positive"].append(not rows[0]["target_is_positive"]),
            "holdout_is_positive that do not end with target_is_positive",
        ),
        (
            TEST,
            lambda rows: rows[0]["holdout_is_positive"].insert(0, True),
            "holdout_items and holdout_is_positive of different lengths",
        ),
        (
            TEST,
            lambda rows: rows[0].update(holdout_timestamps=[9, 8]),
            "holdout_timestamps that do not end with target",
        ),
        (TEST, lambda rows: rows[0].update(holdout_timestamps=[10, 9]), "holdout_timestamps that do not ascend from T"),
        (TEST, lambda rows: rows[1].update(holdout_timestamps=[4, 9]), "holdout_timestamps that do not ascend from T"),
        (
            TEST,
            lambda rows: rows[0].update(holdout_timestamps=[9]),
            "holdout_items and holdout_timestamps of different lengths",
        ),
        (
            TEST,
            lambda rows: rows[0]["before_is_positive"].append(True),
            "before_items and before_is_positive of different lengths",
        ),
        (
            TEST,
            lambda rows: rows[0]["before_positive_items"].reverse(),
            "before_positive_items that before_items and before_is_positive contradict",
        ),
        (TEST, lambda rows: rows[0]["before_seen_items"].pop(), "before_items that are not in before_seen_items"),
        (TEST, lambda rows: rows[0]["before_seen_items"].reverse(), "before_items that are not in before_seen_items"),
        (TEST, lambda rows: rows[0].update(before_negative_items=[1] * 401), "a list of 401 before_negative_items"),
        (TEST, lambda rows: rows[0].update(holdout_items=[1] * 201), "a list of 201 holdout_items"),
        (TEST, lambda rows: rows[0].update(before_is_positive=None), "nulls in before_is_positive"),
        (ITEMS, lambda rows: rows.reverse(), r"item_id that is not 1\.\.12 in order"),
        (ITEMS, lambda rows: rows[3].update(raw_item_id="1"), "a raw_item_id twice"),
        (ITEMS, lambda rows: rows[3].update(num_positive=0), "train interactions, the manifest counts"),
    ],
)
def test_wrong_content_is_named(prepared: Path, name: str, change: Callable, said: str) -> None:
    rewrite(prepared, name, change)
    with pytest.raises(InputError, match=said) as caught:
        verify(Location(prepared))
    assert "make spark-prep DATASET=tiny" in str(caught.value)
    assert name.split("/")[0] in str(caught.value)
