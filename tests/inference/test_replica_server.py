"""What the server says when an alias moves. Real replicas are in tests/integration/test_serve_replicas.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.inference import replica_server
from pnfrec_dist.inference.replica_server import _taken_up, resolved

OLD, NEW = "models:/m/1", "models:/m/2"


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """moved(version): the alias means that version, which can be loaded."""

    def move(version: str) -> None:
        monkeypatch.setattr(replica_server, "resolved", lambda _: version)
        monkeypatch.setattr(replica_server, "load_handler", lambda _: None)

    return move


def none_given(_: str) -> dict[str, int]:
    raise AssertionError("no replica may get another model")


def test_replicas_that_cannot_load_are_named(moved: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    moved(NEW)
    assert _taken_up("m@champion", OLD, lambda given: {given: 2, OLD: 1}) == NEW
    warning, told = capsys.readouterr().out.splitlines()
    assert warning == f"warning: 1 replica of {OLD} cannot load {NEW}; the reason is in the log of Ray Serve"
    assert told.startswith(f"{NEW} instead of {OLD}, taken up in ")


def test_nothing_is_said_if_all_replicas_take_it_up(
    moved: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    moved(NEW)
    assert _taken_up("m@champion", OLD, lambda given: {given: 3}) == NEW
    assert "warning" not in capsys.readouterr().out
    moved(OLD)
    assert _taken_up("m@champion", OLD, none_given) == OLD
    assert not capsys.readouterr().out


def test_a_model_that_cannot_be_loaded_is_not_given(
    moved: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(_: str) -> None:
        raise InputError("model.safetensors is damaged\nmore")

    moved(NEW)
    monkeypatch.setattr(replica_server, "load_handler", damaged)
    assert _taken_up("m@champion", OLD, none_given) == OLD
    assert capsys.readouterr().out == f"warning: model.safetensors is damaged; {OLD} stays\n"


def test_directories_and_versions_mean_themselves(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert resolved(str(tmp_path / "run" / ".." / "run")) == str(tmp_path / "run")
    assert resolved("models:/m/2") == "models:/m/2"
