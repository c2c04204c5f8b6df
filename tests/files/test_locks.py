"""Locks with real processes: some release them, some are killed, many ask at once."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pnfrec_dist.files.locks import held

Holder = tuple[BaseProcess, Connection]
processes = multiprocessing.get_context("fork")


def holding(lock: Path, told: Connection) -> None:
    """Takes the lock, reports that, and releases it on request."""
    with held(lock) as is_ours:
        told.send(is_ours)
        told.recv()


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    """A process that holds tmp_path/lock, and the connection to it."""
    ours, its = processes.Pipe()
    child = processes.Process(target=holding, args=(tmp_path / "lock", its), daemon=True)
    child.start()
    assert ours.recv()
    return child, ours


def test_one_process_holds_it_until_it_lets_go(tmp_path: Path, holder: Holder) -> None:
    child, line = holder
    with held(tmp_path / "lock") as is_ours:
        assert not is_ours
    line.send("let go")
    child.join()
    with held(tmp_path / "lock") as is_ours:
        assert is_ours


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, holder: Holder) -> None:
    child, _ = holder
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    with held(tmp_path / "lock") as is_ours:
        assert is_ours


def test_one_that_waits_has_it_once_the_other_lets_go(tmp_path: Path, holder: Holder) -> None:
    child, line = holder
    line.send("let go")  # before or while this process waits
    with held(tmp_path / "lock", wait=True) as is_ours:
        assert is_ours
    child.join()


def test_two_contexts_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as first, held(tmp_path / "lock") as second:
        assert first and not second
    with held(tmp_path / "lock") as again:
        assert again


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), held(tmp_path / "lock"):
        raise RuntimeError
    with held(tmp_path / "lock") as is_ours:
        assert is_ours


def test_a_lock_that_was_not_had_is_not_removed(tmp_path: Path) -> None:
    with held(tmp_path / "lock", remove=True):
        with held(tmp_path / "lock", remove=True) as second:
            assert not second
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def count_up(lock: Path, counter: Path, rounds: int, remove: bool) -> None:
    for _ in range(rounds):
        with held(lock, wait=True, remove=remove) as is_ours:
            assert is_ours
            before = int(counter.read_text())
            counter.write_text("")  # a second holder would read this and fail
            counter.write_text(str(before + 1))


@pytest.mark.parametrize("remove", [False, True])
def test_many_processes_that_meet_hold_it_one_after_the_other(tmp_path: Path, remove: bool) -> None:
    """Also if each holder deletes the file that others have already opened."""
    counter, count, rounds = tmp_path / "counter", 4, 50
    counter.write_text("0")
    arguments = (tmp_path / "lock", counter, rounds, remove)
    children = [processes.Process(target=count_up, args=arguments) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert int(counter.read_text()) == count * rounds
    assert (tmp_path / "lock").exists() != remove


def test_where_there_can_be_no_file_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "nowhere" / "lock"):
        pass
