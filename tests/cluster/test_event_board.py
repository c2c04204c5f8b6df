"""What workers post and when, without Ray. The test decides when the board answers."""

from types import SimpleNamespace
from typing import Any

import pytest

from pnfrec_dist.cluster import event_board
from pnfrec_dist.cluster.event_board import PROGRESS_SECONDS, Board, BoardHooks
from pnfrec_dist.training.events import Alive, EpochDone, Event, StepDone, Stopped, Warned

EPOCH = EpochDone(1, {"train/loss": 1.0}, 2.0, is_best=True)


def step(number: int) -> StepDone:
    return StepDone(1, number, 9, 1.0, 10.0)


class RemoteBoard:
    """The handle of a board. Posts arrive at once; their answers only while is_fast is True."""

    def __init__(self) -> None:
        self.board, self.is_fast, self.now = Board(), True, 0.0
        self.post = SimpleNamespace(remote=self.board.post)

    def wait(self, answers: list[bool], timeout: float) -> tuple[list[bool], list[bool]]:
        assert timeout == 0, "a step waits for nobody"
        return (answers, []) if self.is_fast else ([], answers)

    def take(self) -> list[Event]:
        return self.board.take()


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> RemoteBoard:
    remote = RemoteBoard()
    monkeypatch.setattr(event_board, "ray", SimpleNamespace(wait=remote.wait, get=lambda answer: answer))
    monkeypatch.setattr(event_board, "time", SimpleNamespace(monotonic=lambda: remote.now))
    return remote


def hooks_of(remote: RemoteBoard) -> BoardHooks:
    handle: Any = remote
    return BoardHooks(handle)


def test_events_arrive_once_and_in_order(remote: RemoteBoard) -> None:
    hooks = hooks_of(remote)
    events: list[Event] = [step(1), Warned("a"), step(2), EPOCH]
    for event in events:
        hooks.report(event)
    assert remote.take() == events and remote.take() == []


def test_of_steps_that_wait_the_newest_is_kept_and_nothing_else_is_lost(remote: RemoteBoard) -> None:
    hooks = hooks_of(remote)
    hooks.report(step(1))
    remote.is_fast = False
    for event in (step(2), step(3), Warned("a"), step(4), step(5)):
        hooks.report(event)
    assert remote.take() == [step(1)]
    hooks.report(EPOCH)
    assert remote.take() == [step(3), Warned("a"), step(5), EPOCH], "an epoch waits until the board has it"


def test_a_stop_is_heard_with_the_answer(remote: RemoteBoard) -> None:
    hooks = hooks_of(remote)
    assert not hooks.should_stop()
    hooks.report(step(1))
    remote.board.request_stop()
    assert not hooks.should_stop(), "the last answer was given before"
    hooks.report(step(2))
    assert hooks.should_stop()
    hooks.report(Stopped(1, 2))
    assert hooks.should_stop(), "for good"


def test_a_worker_without_steps_says_now_and_then_that_it_is_alive(remote: RemoteBoard) -> None:
    hooks = hooks_of(remote)
    hooks.report(EPOCH)
    hooks.progress(0.5)
    assert remote.take() == [EPOCH]
    remote.now += PROGRESS_SECONDS + 0.1
    hooks.progress(0.5)
    hooks.progress(0.5)
    assert remote.take() == [Alive(0.5)]
