"""Directories of lists: complete or absent, resumed, and deleted if the request differs."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.list_output import ListFiles, Part, write_part

TABLE = pa.table({"user_id": ["a", "a", "b"], "rank": [1, 2, 1]})


def make(directory: Path, request: dict[str, Any], numbers: list[int]) -> dict[int, Part]:
    """Makes some parts and stops."""
    files = ListFiles(directory, request)
    with files.opened() as done:
        for number in numbers:
            done[number] = write_part(files.making, number, TABLE, 2, 0)
        return done


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_parts_that_are_whole_are_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "recs"
    make(out, {"top_k": 5}, [0, 2])
    assert not out.exists()
    files = ListFiles(out, {"top_k": 5})
    (files.making / ".part-00001.parquet.99").write_text("half")
    with files.opened() as done:
        assert sorted(done) == [0, 2]
        done[1] = write_part(files.making, 1, TABLE, 2, 1)
        files.publish([done[number] for number in sorted(done)], {"top_k": 5})
    assert names(tmp_path) == ["recs"]
    assert names(out) == ["_manifest.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["kind"] == "recommendations" and [f["rows"] for f in manifest["files"]] == [3, 3, 3]
    assert pq.read_table(out / "part-00001.parquet").equals(TABLE)


def test_a_damaged_part_and_another_request_are_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "recs"
    make(out, {"top_k": 5}, [0, 1])
    with (tmp_path / ".recs.making" / "part-00001.parquet").open("ab") as file:
        file.write(b"x")
    with ListFiles(out, {"top_k": 5}).opened() as done:
        assert sorted(done) == [0]
    with ListFiles(out, {"top_k": 6}).opened() as done:
        assert done == {}


def test_the_old_lists_stay_until_the_new_ones_are_whole(tmp_path: Path) -> None:
    out = tmp_path / "recs"
    files = ListFiles(out, {"n": 1})
    with files.opened() as done:
        files.publish([write_part(files.making, 0, TABLE, 2, 0)], {"n": 1})
    make(out, {"n": 2}, [0])
    assert json.loads((out / "_manifest.json").read_text())["n"] == 1
    files = ListFiles(out, {"n": 2})
    with files.opened() as done:
        files.publish(done.values(), {"n": 2})
    assert json.loads((out / "_manifest.json").read_text())["n"] == 2 and names(tmp_path) == ["recs"]


def test_a_kill_between_the_two_moves_is_mended(tmp_path: Path) -> None:
    out = tmp_path / "recs"
    files = ListFiles(out, {"n": 1})
    with files.opened():
        files.publish([write_part(files.making, 0, TABLE, 2, 0)], {"n": 1})
    out.rename(tmp_path / ".recs.old")
    with ListFiles(out, {"n": 2}).opened():
        assert json.loads((out / "_manifest.json").read_text())["n"] == 1
    assert names(tmp_path) == ["recs"]


def test_a_kill_while_the_manifest_is_written_is_mended(tmp_path: Path) -> None:
    """The notes are already deleted then, so the parts are made again."""
    out = tmp_path / "recs"

    def work() -> None:
        files = ListFiles(out, {"n": 1})
        with files.opened(), pytest.MonkeyPatch.context() as patch:
            part = write_part(files.making, 0, TABLE, 2, 0)
            patch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            files.publish([part], {"n": 1})

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert names(tmp_path / ".recs.making") == ["._manifest.json.writing", "part-00000.parquet"]
    with ListFiles(out, {"n": 1}).opened() as done:
        assert not done
    assert not names(tmp_path)


def test_what_is_no_list_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(InputError, match=r"mine(/thesis\.txt)? exists and is not from earlier lists; move it away"):
            ListFiles(place, {})
    ListFiles(tmp_path / "new", {})
    out = tmp_path / "recs"
    files = ListFiles(out, {})
    with files.opened():
        files.publish([write_part(files.making, 0, TABLE, 2, 0)], {})
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"recs/notes\.txt exists and is not from earlier lists"):
        ListFiles(out, {})
    (tmp_path / ".new.making").mkdir()
    (tmp_path / ".new.making" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"\.new\.making exists"):
        ListFiles(tmp_path / "new", {})


def test_a_command_that_made_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ListFiles(tmp_path / "recs", {}).opened():
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_two_commands_do_not_share_a_directory(tmp_path: Path) -> None:
    out = tmp_path / "recs"
    other = ListFiles(out, {})
    with ListFiles(out, {}).opened(), pytest.raises(InputError, match="made by another command"), other.opened():
        raise AssertionError("both have it")


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot write below .*/file \(.*\); name another"),
        ListFiles(tmp_path / "file" / "recs", {}).opened(),
    ):
        pass
