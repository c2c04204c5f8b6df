"""A file is read once per machine, and every change of it is noticed."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pnfrec_dist.files import content_hash
from pnfrec_dist.files.content_hash import UNUSED_DAYS, cache_directory, has_sha256, remove_unused_notes
from pnfrec_dist.files.locations import Location, sha256_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PNFREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every file as if it had been written long ago."""
    monkeypatch.setattr(content_hash, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list that collects the files whose sha256 is computed."""
    read: list[str] = []
    plain = Location.sha256

    def counted(file: Location) -> str:
        read.append(file.name)
        return plain(file)

    monkeypatch.setattr(Location, "sha256", counted)
    yield read


def written(path: Path, content: bytes = b"likes and dislikes") -> tuple[Location, str]:
    path.write_bytes(content)
    return Location(path), sha256_of(path)


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    file, sha256 = written(tmp_path / "a")
    assert all(has_sha256(file, sha256) for _ in range(3))
    assert reads == ["a"]


def test_a_file_that_was_just_written_is_read_each_time(tmp_path: Path, reads: list[str]) -> None:
    """Two fast changes may get the same time from the file system."""
    file, sha256 = written(tmp_path / "a")
    assert has_sha256(file, sha256) and has_sha256(file, sha256)
    assert reads == ["a", "a"]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def flipped_with_its_times_put_back(path: Path) -> None:
    before = path.stat()
    flipped(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_another(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    flipped_with_its_times_put_back(other)
    other.replace(path)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [flipped, flipped_with_its_times_put_back, replaced_by_another])
def test_a_change_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file, sha256 = written(tmp_path / "a")
    assert has_sha256(file, sha256)
    change(file.path)
    assert not has_sha256(file, sha256)
    assert not has_sha256(file, sha256), "what does not match is never noted"


@pytest.mark.usefixtures("settled")
def test_many_that_ask_at_once_read_it_once(tmp_path: Path, reads: list[str]) -> None:
    file, sha256 = written(tmp_path / "a")
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: has_sha256(file, sha256), range(16)))
    assert reads == ["a"]


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, own_cache: Path, reads: list[str]) -> None:
    own_cache.write_text("in the way")
    file, sha256 = written(tmp_path / "a")
    assert has_sha256(file, sha256) and has_sha256(file, sha256)
    assert reads == ["a", "a"]


@pytest.mark.usefixtures("settled")
def test_notes_that_nobody_used_for_a_month_go(tmp_path: Path, own_cache: Path, reads: list[str]) -> None:
    files = [written(tmp_path / name, name.encode()) for name in ("old", "used")]
    for file, sha256 in files:
        assert has_sha256(file, sha256)
    for note in (own_cache / "checked").iterdir():
        os.utime(note, (0, 0))
    assert has_sha256(*files[1])
    remove_unused_notes(own_cache)
    assert has_sha256(*files[0]) and has_sha256(*files[1])
    assert reads == ["old", "used", "old"] and UNUSED_DAYS == 30


def test_a_file_that_is_gone_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        has_sha256(Location(tmp_path / "none"), "0")


def test_the_cache_is_where_the_environment_says(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == own_cache
    monkeypatch.delenv("PNFREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_directory() == Path("/elsewhere/pnfrec-dist")
