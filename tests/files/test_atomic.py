"""Files and directories that are complete or absent, with real kills between draft and move."""

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.files import atomic, locations
from pnfrec_dist.files.atomic import (
    draft_of,
    move_in,
    old_of,
    put_back,
    replaced,
    replaced_directory,
    require_writable,
    scratch_directory,
    write_json,
    write_text,
    writing,
)

processes = multiprocessing.get_context("fork")
LONG = 200_000
"""More characters than one write to a file takes."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def killed(work: Callable[[], None]) -> None:
    """Runs `work`, which kills its own process, in a child."""
    child = processes.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_directory(path: Path, content: str) -> None:
    with replaced_directory(path) as draft:
        (draft / "below").mkdir()
        (draft / "below" / "a").write_text(content)


def test_a_file_is_replaced_in_one_move(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for content in ("old", "new"):
        with replaced(file) as draft:
            assert draft.parent == tmp_path and draft.name.startswith(".")
            draft.write_text(content)
        assert file.read_text() == content and names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    for error in (OSError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replaced(file) as draft:
            draft.write_text("half")
            raise error
        assert file.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_kill_leaves_the_old_file_and_the_next_writer_clears_the_draft(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def work() -> None:
        with replaced(file) as draft:
            draft.write_text("half")
            die()

    killed(work)
    assert file.read_text() == "old" and names(tmp_path) == [".a.txt.writing", "a.txt"]
    write_text(file, "new")
    assert file.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_reader_finds_one_whole_text_or_another_while_many_write(tmp_path: Path) -> None:
    file, writers, rounds = tmp_path / "a.txt", 4, 30
    write_text(file, "0" * LONG)
    started = processes.Barrier(writers + 1)

    def work(barrier: Barrier, letter: str) -> None:
        barrier.wait()
        for _ in range(rounds):
            write_text(file, letter * LONG, writer=os.getpid())

    children = [processes.Process(target=work, args=(started, str(number))) for number in range(1, writers + 1)]
    for child in children:
        child.start()
    started.wait()
    while any(child.is_alive() for child in children):
        content = file.read_text()
        assert len(content) == LONG and len(set(content)) == 1
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert names(tmp_path) == ["a.txt"]


def test_the_draft_is_on_the_disk_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, synced = tmp_path / "a.txt", []

    def sync(path: Path) -> None:
        assert not file.exists()
        synced.append((path, path.read_text()))

    monkeypatch.setattr(atomic, "sync_to_disk", sync)
    write_text(file, "text")
    assert synced == [(draft_of(file), "text")]


def test_json_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"}, indent=1, sort_keys=True)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": "ä", "b": 1} and text.endswith("}\n") and text.index('"a"') < text.index('"b"')


def test_whether_a_file_can_be_written_is_known_without_writing_it(tmp_path: Path) -> None:
    require_writable(tmp_path / "new")
    (tmp_path / "old").write_text("old")
    require_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old" and names(tmp_path) == ["old"]
    with pytest.raises(IsADirectoryError):
        require_writable(tmp_path)
    with pytest.raises(NotADirectoryError):
        require_writable(tmp_path / "old" / "below")
    with pytest.raises(FileNotFoundError):
        require_writable(tmp_path / "nowhere" / "a")


def test_a_directory_is_replaced_with_all_it_held(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "d"
    write_directory(place, "old")
    (place / "more").write_text("")
    write_directory(place, "new")
    assert names(place) == ["below"] and (place / "below" / "a").read_text() == "new"
    assert names(tmp_path / "deep") == ["d"]


def test_an_error_leaves_the_old_directory_and_no_draft(tmp_path: Path) -> None:
    write_directory(tmp_path / "d", "old")
    with pytest.raises(RuntimeError), replaced_directory(tmp_path / "d") as draft:
        (draft / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "d" / "below" / "a").read_text() == "old" and names(tmp_path) == ["d"]


def test_every_file_of_a_directory_is_on_the_disk_before_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, before, after = tmp_path / "d", [], []
    for module in (atomic, locations):
        monkeypatch.setattr(module, "sync_to_disk", lambda path: (after if place.exists() else before).append(path))
    write_directory(place, "text")
    draft = draft_of(place)
    assert set(before) == {draft, draft / "below", draft / "below" / "a"} and after == [tmp_path]


def test_a_kill_while_the_draft_is_written_leaves_the_old_directory(tmp_path: Path) -> None:
    place = tmp_path / "d"
    write_directory(place, "old")

    def work() -> None:
        with replaced_directory(place) as draft:
            (draft / "a").write_text("half")
            die()

    killed(work)
    assert (place / "below" / "a").read_text() == "old"
    write_directory(place, "new")
    assert names(place) == ["below"] and names(tmp_path) == ["d"]


def rename_and_die(count: int) -> Callable[[Path, Path], Path]:
    """A Path.rename that kills its process after `count` calls."""
    done, rename = 0, Path.rename

    def counting(self: Path, target: Path) -> Path:
        nonlocal done
        moved = rename(self, target)
        done += 1
        if done == count:
            die()
        return moved

    return counting


@pytest.mark.parametrize(("count", "left"), [(1, "old"), (2, "new")])
def test_a_kill_between_the_two_moves_is_mended_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, left: str
) -> None:
    place = tmp_path / "d"
    write_directory(place, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_and_die(count))
        killed(lambda: write_directory(place, "new"))
    assert place.exists() == (count == 2), "half a directory never lies there"
    put_back(place)
    assert (place / "below" / "a").read_text() == left and not old_of(place).exists()
    write_directory(place, "next")
    assert (place / "below" / "a").read_text() == "next" and names(tmp_path) == ["d"]


def test_where_the_second_move_fails_the_old_directory_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_directory(tmp_path / "d", "old")
    with pytest.raises(FileNotFoundError), scratch_directory(tmp_path / "draft") as draft:
        draft.rmdir()
        monkeypatch.setattr(locations, "sync_to_disk", lambda _: None)
        move_in(draft, tmp_path / "d")
    assert (tmp_path / "d" / "below" / "a").read_text() == "old" and names(tmp_path) == ["d"]


def test_a_scratch_directory_begins_empty_and_goes(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "left").write_text("")
    with scratch_directory(tmp_path / "s") as scratch:
        assert not names(scratch)
        (scratch / "a").write_text("")
    assert not names(tmp_path)


def test_a_link_to_a_directory_is_replaced_not_what_it_leads_to(tmp_path: Path) -> None:
    write_directory(tmp_path / "elsewhere", "theirs")
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    write_directory(tmp_path / "d", "new")
    assert not (tmp_path / "d").is_symlink() and (tmp_path / "d" / "below" / "a").read_text() == "new"
    assert (tmp_path / "elsewhere" / "below" / "a").read_text() == "theirs" and names(tmp_path) == ["d", "elsewhere"]


def test_what_cannot_be_written_is_said_in_one_line_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"^cannot write to .*/file/d \(Not a directory\); make room$") as caught,
        writing(f"to {tmp_path}/file/d", "make room"),
    ):
        write_directory(tmp_path / "file" / "d", "")
    assert isinstance(caught.value.__cause__, NotADirectoryError)
    with pytest.raises(InputError, match=r"cannot write it \(no strerror\); go"), writing("it", "go"):
        raise OSError("no strerror")
    with pytest.raises(InputError, match=r"\(No space left on device\)"), writing("it", "go"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ValueError, match="ours"), writing("it", "go"):
        raise ValueError("ours")
