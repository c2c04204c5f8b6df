"""How a search ends before its trials, with fake actors that report when they have cleaned up."""

import threading
from typing import Any

import pytest

from tune import ending
from tune.ending import Ending


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Actors:
    """Replaces Ray and the handles of two trials' actors. One of them is done at each wait."""

    def __init__(self) -> None:
        self.cleanup, self.asked = self, 0

    def remote(self) -> str:
        self.asked += 1
        return f"cleanup {self.asked}"

    def wait(self, left: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return left[:1], left[1:]

    def running(self) -> list[Any]:
        return [self, self]


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(ending, "ray", actors)
    return actors


def test_a_signal_ends_it_once_all_trials_have_cleaned_up(actors: Actors) -> None:
    asked = threading.Event()
    stopper = Ending(asked, None, actors.running)
    assert not stopper.stop_all() and not actors.asked
    asked.set()
    assert stopper.stop_all() and actors.asked == 2 and not stopper.is_cut
    assert stopper.stop_all() and actors.asked == 2, "nobody is asked twice"
    assert not stopper("trial", {}), "no trial is stopped by itself"


def test_the_time_budget_ends_it_and_is_remembered(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(ending, "time", clock)
    stopper = Ending(threading.Event(), 40.0, actors.running)
    clock.now += 39.9
    assert not stopper.stop_all()
    clock.now += 0.1
    assert stopper.stop_all() and stopper.is_cut and actors.asked == 2


def test_while_it_waits_for_trials_those_that_hang_are_looked_for(actors: Actors) -> None:
    asked, polls = threading.Event(), list[int]()
    stopper = Ending(asked, None, actors.running, lambda: polls.append(1))
    assert not stopper.stop_all() and len(polls) == 1
    asked.set()
    assert stopper.stop_all() and len(polls) == 3, "once after each wait"
    assert stopper.stop_all() and len(polls) == 3, "then nothing runs"
