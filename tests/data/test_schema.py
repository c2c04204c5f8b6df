import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.config.settings import History
from pnfrec_dist.data.cache import mapped
from pnfrec_dist.data.prepared import TRAINING_PARTS, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import read_manifest, schema_differences, write_manifest
from pnfrec_dist.data.user_histories import user_parts
from pnfrec_dist.errors import InputError
from pnfrec_dist.files import content_hash
from pnfrec_dist.files.locations import Location, sha256_of


def test_a_whole_data_set_opens(prepared: Path) -> None:
    data = open_prepared(prepared)
    assert len(data.train()) == 30
    assert len(data.holdout("test")) == 10


def _flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _delete_shard(d: Path) -> None:
    (d / "train/part-00001.parquet").unlink()


def _truncate_shard(d: Path) -> None:
    file = d / "test/part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1])


def _flip_shard(d: Path) -> None:
    _flip(d / "validation/part-00000.parquet", 40)


def _flip_items(d: Path) -> None:
    _flip(d / "items.parquet", 40)


def _add_shard(d: Path) -> None:
    shutil.copy(d / "train/part-00000.parquet", d / "train/part-00009.parquet")


def _swap_shards(d: Path) -> None:
    a, b = d / "train/part-00000.parquet", d / "train/part-00001.parquet"
    other = b.read_bytes()
    b.write_bytes(a.read_bytes())
    a.write_bytes(other)


def _flip_manifest(d: Path) -> None:
    text = (d / "manifest.json").read_text()
    (d / "manifest.json").write_text(text.replace('"split_timestamp": 5', '"split_timestamp": 6'))


def _no_success(d: Path) -> None:
    (d / "_SUCCESS").unlink()


def _no_manifest(d: Path) -> None:
    (d / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_delete_shard, "train/part-00001.parquet is listed in the manifest but missing"),
        (_truncate_shard, "test/part-00000.parquet has"),
        (_flip_shard, "validation/part-00000.parquet does not match its sha256"),
        (_flip_items, "items.parquet does not match its sha256"),
        (_add_shard, "train/part-00009.parquet is not listed"),
        (_swap_shards, "train/part-0000"),
        (_flip_manifest, "manifest.json does not match its sha256"),
        (_no_success, "half-written"),
        (_no_manifest, "has no manifest.json"),
        (shutil.rmtree, "no prepared data set at"),
    ],
)
def test_a_damaged_data_set_is_refused_by_file_name(prepared: Path, damage: Callable, said: str) -> None:
    damage(prepared)
    with pytest.raises(InputError) as caught:
        open_prepared(prepared).require_whole(*TRAINING_PARTS)
    assert said in str(caught.value)
    assert "make spark-prep DATASET=tiny" in str(caught.value)


def _rewrite(directory: Path, name: str, table: pa.Table) -> None:
    """Replaces a file and its manifest entry, as a writer with another schema would."""
    path = directory / name
    pq.write_table(table, path)
    raw = json.loads((directory / "manifest.json").read_text())
    for entry in raw["files"]:
        if entry["path"] == name:
            entry.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    manifest = read_manifest(directory)
    files = [type(manifest.files[0])(**entry) for entry in raw["files"]]
    write_manifest(directory, type(manifest)(**{**manifest.__dict__, "files": files}))


def test_another_schema_is_refused(prepared: Path) -> None:
    name = "train/part-00000.parquet"
    table = pq.read_table(prepared / name)
    _rewrite(prepared, name, table.rename_columns(["user_id", "items", "is_positive", "likes", "negative_items"]))
    with pytest.raises(InputError, match="likes"):
        open_prepared(prepared).train()


@pytest.mark.parametrize(("column", "item", "history"), [("positive_items", 99, "positive"), ("items", -3, "signed")])
def test_ids_outside_the_catalog_are_refused(prepared: Path, column: str, item: int, history: History) -> None:
    name = "train/part-00000.parquet"
    table = pq.read_table(prepared / name)
    beyond = pa.array([[item]] * len(table), type=pa.list_(pa.int32()))
    _rewrite(prepared, name, table.set_column(table.column_names.index(column), table.schema.field(column), beyond))
    with pytest.raises(InputError, match=rf"{column} holds ids outside 1\.\.12"):
        open_prepared(prepared).train(history)


@pytest.mark.parametrize("history", ["all", "signed"])
def test_a_history_of_both_kinds_has_signs(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: History
) -> None:
    """Also where an earlier version has left lists without signs in the cache."""
    monkeypatch.setenv("PNFREC_CACHE", str(tmp_path / "cache"))
    data = open_prepared(prepared)
    mapped(tmp_path / "cache" / f"tiny-{data.manifest.digest[:32]}-all", lambda: {"items": Ragged.of([[1]])})
    for split, found in (("train", data.train(history).history), ("test", data.holdout("test", history).history)):
        rows = pq.read_table(prepared / split, columns=["items", "is_positive"]).to_pylist()
        expected = [
            [item if liked else -item for item, liked in zip(row["items"], row["is_positive"], strict=True)]
            for row in rows
        ]
        assert [found.row(number).tolist() for number in range(len(found))] == expected


def test_other_settings_are_refused_with_the_difference(prepared: Path) -> None:
    with pytest.raises(InputError, match=r"feedback.threshold 4 -> 5"):
        open_prepared(prepared, {"feedback": {"threshold": 5}, "max_history": 200})
    open_prepared(prepared, {"feedback": {"threshold": 4}, "max_history": 200})


def test_another_schema_version_is_refused(prepared: Path) -> None:
    manifest = read_manifest(prepared)
    write_manifest(prepared, type(manifest)(**{**manifest.__dict__, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        open_prepared(prepared)


def _counts_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that collects the files whose sha256 is computed."""
    read: list[str] = []
    plain = Location.sha256

    def counted(file: Location) -> str:
        read.append(f"{file.parent.name}/{file.name}")
        return plain(file)

    monkeypatch.setattr(Location, "sha256", counted)
    return read


def test_only_what_is_read_is_compared_once_a_machine(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads no file of data. A split is compared with its sha256 when it is first read."""
    monkeypatch.setenv("PNFREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "SETTLED_SECONDS", -1.0)
    read = _counts_reads(monkeypatch)
    open_prepared(prepared)
    assert read == []
    for _ in range(3):
        open_prepared(prepared).holdout("test")
    assert read == ["test/part-00000.parquet", "test/part-00001.parquet"]
    read.clear()
    for _ in range(3):
        open_prepared(prepared).train()
    assert [name for name in read if name.startswith("train/")] == [
        "train/part-00000.parquet",
        "train/part-00001.parquet",
    ]
    arrays = [name for name in read if not name.startswith("train/")]
    assert len(arrays) == len(set(arrays)) > 0, "the mapped arrays are compared once, too"


@pytest.mark.parametrize("part", ["users", "items.parquet"])
def test_what_lists_are_made_from_is_compared_when_it_is_read(prepared: Path, part: str) -> None:
    _flip(prepared / (f"{part}/part-00001.parquet" if part == "users" else part), 40)
    data = open_prepared(prepared)
    with pytest.raises(InputError, match="does not match its sha256"):
        user_parts(data) if part == "users" else data.raw_item_ids()


def test_what_differs_between_schemas_is_short() -> None:
    expected = pa.schema([("a", pa.int32()), ("b", pa.string())])
    for found, text in (
        (["a"], "no column b"),
        (["a", "b", "c", "d"], "unknown columns c, d"),
        (["b", "c"], "no column a and unknown column c"),
        (["b", "a"], "its columns in another order, or other nulls"),
    ):
        types = {"a": pa.int32(), "b": pa.string(), "c": pa.int8(), "d": pa.int8()}
        assert schema_differences(pa.schema([(name, types[name]) for name in found]), expected) == text
    long = pa.schema([("a", pa.int64()), ("b", pa.string())])
    assert schema_differences(long, expected) == "a as int64 instead of int32"
