"""A kill at any step of publishing leaves the old data set, the new one or none, never an incomplete one."""

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.publish import build_directory, clear_leftovers, publish, whole_manifest

DEAD = f"{socket.gethostname()}-{2**22 + 1}"
"""A directory suffix with a process id that Linux never assigns."""


class Killed(BaseException):
    pass


def digest(directory: Path) -> str | None:
    manifest = whole_manifest(Location(directory))
    return manifest.digest if manifest else None


@pytest.fixture
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """False: the local disk acts like an object store, which has no directories and cannot rename them."""
    if not request.param:
        monkeypatch.setattr(Location, "renames", False)
        real = Location.copy_file

        def copy(self: Location, to: Location) -> None:
            to.path.parent.mkdir(parents=True, exist_ok=True)
            real(self, to)

        monkeypatch.setattr(Location, "copy_file", copy)
    return request.param


@pytest.mark.parametrize("renames", [True, False], indirect=True)
def test_killed_at_every_step_of_publishing(
    renames: bool,
    prepared_writer: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = set()
    for fatal in range(1000):
        root = tmp_path_factory.mktemp("publish")
        final, building = root / "tiny", root / f".tiny.building-{DEAD}"
        prepared_writer(final, seed=1)
        prepared_writer(building, seed=2)
        old, new = digest(final), digest(building)
        assert old and new and old != new
        steps = 0

        def dying(name: str, fatal: int = fatal):
            real = getattr(Location, name)

            def step(self: Location, *args: object) -> object:
                nonlocal steps
                steps += 1
                if steps > fatal:
                    raise Killed
                return real(self, *args)

            return step

        with monkeypatch.context() as patch:
            for name in ("rename", "delete", "sync", "copy_file"):
                patch.setattr(Location, name, dying(name))
            try:
                publish(Location(building), Location(final))
                finished = True
            except Killed:
                finished = False
        found = digest(final)
        assert found in (old, new, None)
        assert found is not None or not (final / "_SUCCESS").exists(), "a half must not look whole"
        clear_leftovers(Location(final))
        after = digest(final)
        assert after is not None or not renames, "what was set aside is put back"
        assert {p.name for p in root.iterdir()} <= {"tiny"}, "nothing is left beside it"
        outcomes.add({old: "old", new: "new", None: "none"}[found])
        if finished:
            assert after == new
            break
    assert outcomes == {"old", "new", "none"}


def test_where_the_second_move_fails_the_old_data_set_comes_back(
    prepared_writer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = prepared_writer(tmp_path / "tiny", seed=1)
    building = prepared_writer(tmp_path / ".tiny.building-1", seed=2)
    old, real = digest(final), Location.rename

    def rename(self: Location, to: Location) -> None:
        if self.path == building:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(self, to)

    monkeypatch.setattr(Location, "rename", rename)
    with pytest.raises(PermissionError):
        publish(Location(building), Location(final))
    assert digest(final) == old and {path.name for path in tmp_path.iterdir()} == {"tiny", building.name}


def test_leftovers_of_the_living_and_of_other_data_sets_stay(tmp_path: Path) -> None:
    mine = f"{socket.gethostname()}-{os.getpid()}"
    kept = [f".tiny.building-{mine}", ".tiny.building-other.host-17", f".tiny2.building-{DEAD}", "tiny2"]
    for name in [*kept, f".tiny.building-{DEAD}", f".tiny.old-{DEAD}"]:
        (tmp_path / name).mkdir()
    clear_leftovers(Location(tmp_path / "tiny"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_an_error_leaves_nothing_and_an_unwritable_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), build_directory(Location(tmp_path / "sets" / "tiny")) as building:
        (building / "file").write_bytes(b"x")
        raise RuntimeError
    assert list((tmp_path / "sets").iterdir()) == []
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="choose another --data-dir"),
        build_directory(Location(tmp_path / "file/tiny")),
    ):
        pass


def test_a_first_data_set_is_published(tmp_path: Path, prepared_writer: Callable[..., Path]) -> None:
    building = prepared_writer(tmp_path / ".tiny.building-1")
    expected = digest(building)
    publish(Location(building), Location(tmp_path / "tiny"))
    assert digest(tmp_path / "tiny") == expected
    shutil.rmtree(tmp_path / "tiny")
    assert digest(tmp_path / "tiny") is None
