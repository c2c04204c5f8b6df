"""Locations by path and by URI: the same operations, on local files."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import CHUNK, Location, reading, sha256_of, sync_to_disk


def test_a_path_and_its_uri_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [Location("a/b"), Location(tmp_path / "a" / "b"), Location(f"file://{tmp_path}/a/b"), Location("a") / "b"]
    assert len(set(places)) == 1 and all(place.path == tmp_path / "a" / "b" for place in places)
    assert str(places[0]) == "a/b", "shown as it was given"
    assert places[0].name == "b" and places[0].parent == Location("a") and Location(places[0]) == places[0]
    assert Location("~/x").path == Path.home() / "x"


def test_a_place_elsewhere_is_its_uri() -> None:
    place = Location("s3://bucket/data/")
    assert not place.is_local and not place.renames and str(place) == "s3://bucket/data"
    assert str(place / "a") == "s3://bucket/data/a" and (place / "a").parent == place
    assert Location("hdfs://host/data").renames and place.resolved() is place


@pytest.mark.parametrize("place", ["", " ", "file:relative", "nonsense://x"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(InputError, match=r"a path is empty|is not a file URI|cannot open nonsense://x"):
        Location(place).is_file()


def test_a_place_travels_and_opens_anew(tmp_path: Path) -> None:
    place = Location(tmp_path / "a")
    place.write_bytes(b"text")
    there = pickle.loads(pickle.dumps(place))
    assert there == place and there.read_bytes() == b"text"


def test_files_and_directories(tmp_path: Path) -> None:
    top = Location(tmp_path / "top")
    assert not top.is_dir() and top.files() == {} and top.entries() == {}
    (top / "b" / "c").make_directory()
    content = os.urandom(CHUNK + 3)
    for name, written in (("z", b"1"), ("b/c/long", content), ("b/packed.gz", b"not unpacked")):
        (top / name).write_bytes(written)
    assert top.files() == {"b/c/long": len(content), "b/packed.gz": 12, "z": 1}
    assert list(top.entries()) == ["b", "b/c", "b/c/long", "b/packed.gz", "z"]
    assert list(top.entries(recursive=False)) == ["b", "z"] and list(top.files(recursive=False)) == ["z"]
    assert (top / "b/packed.gz").read_bytes() == b"not unpacked" and (top / "z").size() == 1
    with (top / "b/c/long").open() as file:
        file.seek(CHUNK)
        assert file.read() == content[CHUNK:]
    digest = hashlib.sha256(content).hexdigest()
    assert (top / "b/c/long").sha256() == digest == sha256_of(tmp_path / "top/b/c/long")


def test_moving_copying_deleting(tmp_path: Path) -> None:
    top = Location(tmp_path)
    (top / "a").make_directory()
    (top / "a/f").write_bytes(b"1")
    (top / "a").rename(top / "b")
    (top / "b/f").copy_file(top / "g")
    assert top.files() == {"b/f": 1, "g": 1}
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert (top / "link").resolved() == top / "b"
    (top / "link").delete()
    assert (top / "b/f").is_file(), "a link goes, not what it leads to"
    for name in ("b", "g", "never there"):
        (top / name).delete()
    assert top.entries() == {}


def test_what_is_synced_is_the_file_or_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("text")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    sync_to_disk(tmp_path / "a")
    Location(tmp_path).sync()
    Location("s3://bucket/a").sync()
    assert synced == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), ("{", "JSONDecodeError: Expecting .*"), ("{}", "KeyError: 'a'")],
)
def test_what_cannot_be_read_is_said_in_one_line_with_a_way_out(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    wanted = rf"a\.json cannot be read \({reason}\); remove it$"
    with pytest.raises(InputError, match=wanted), reading(file, "remove it"):
        json.loads(file.read_text())["a"]


def test_what_was_said_of_a_content_already_is_not_said_twice() -> None:
    with pytest.raises(InputError, match=r"^too old$"), reading("a", "remove it"):
        raise InputError("too old")
