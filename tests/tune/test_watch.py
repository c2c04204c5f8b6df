"""Trials that hang, die and start again, with a fake Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune import watch as watching
from tune.records import read_record, trial_name
from tune.search import BROKEN, EPOCH, SCORE, SILENCE
from tune.watch import DIED, START_SECONDS, Watch

POINT = {"optimizer.lr": 0.1}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Stage:
    """A stage of one trial, with a clock that the test sets."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.killed = Clock(), list[str]()
        monkeypatch.setattr(watching, "time", self.clock)
        monkeypatch.setattr(watching, "ray", SimpleNamespace(kill=self.killed.append))
        self.watch, self.directory = Watch("rates", directory, 3, [], 1, 1), directory
        self.trial: Any = SimpleNamespace(
            trial_id="t", config={"point": POINT}, temporary_state=SimpleNamespace(ray_actor="actor")
        )

    def reason(self) -> str:
        """The reason in the trial's record."""
        record = read_record(self.directory / trial_name(POINT))
        assert record is not None
        return record.reason

    def start(self) -> None:
        self.watch.on_trial_start(0, [], self.trial)

    def tell(self, **more: Any) -> None:
        content = {EPOCH: 1, SCORE: 0.2, "own": 0.2, "seconds": 1.0, "trained": False, "failed": "", SILENCE: 0.0}
        self.watch.on_trial_result(0, [], self.trial, content | {"trial_seconds": 1.0} | more)

    def poll_after(self, seconds: float) -> list[str]:
        self.clock.now += seconds
        self.watch.kill_stuck(10.0)
        return self.killed


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_a_trial_that_is_silent_too_long_is_killed_once(stage: Stage) -> None:
    stage.start()
    assert not stage.poll_after(START_SECONDS + 9)
    stage.tell()
    assert not stage.poll_after(9)
    stage.tell(**{SILENCE: 4.0})
    assert not stage.poll_after(5)
    assert stage.poll_after(2) == ["actor"]
    assert stage.poll_after(5) == ["actor"], "not again while it ends"
    stage.watch.on_trial_error(0, [], stage.trial)
    assert stage.reason() == "no progress for 11 s (--stall-timeout 10)"


def test_what_a_trial_died_of_is_forgotten_once_it_runs_again(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.start()
    stage.tell(**{BROKEN: "the training failed: OSError: gone"})
    stage.watch.on_trial_recover(0, [], stage.trial)
    assert "restarted lr 0.1: the training failed: OSError: gone" in capsys.readouterr().out
    stage.start()
    stage.watch.on_trial_error(0, [], stage.trial)
    assert stage.reason() == DIED
