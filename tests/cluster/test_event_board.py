"""What workers post and when, with a board that answers when the test says so."""

from typing import Any

import pytest

from pnfrec_dist.cluster import event_board
from pnfrec_dist.cluster.event_board import Board, BoardHooks


class SlowBoard:
    """A board as Ray shows it, and in place of Ray: a post is done once it `answers`."""

    def __init__(self) -> None:
        self.board, self.answers, self.waits = Board(), False, 0
        self.post = self

    def remote(self, events: list[dict[str, Any]]) -> bool:
        return self.board.post(events)

    def wait(self, posts: list[bool], timeout: float) -> tuple[list[bool], list[bool]]:
        return (posts, []) if self.answers else ([], posts)

    def get(self, post: bool) -> bool:
        self.waits += 1
        return post

    def kinds(self) -> list[Any]:
        return [event.get("step", event["kind"]) for event in self.board.take()]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowBoard:
    board = SlowBoard()
    monkeypatch.setattr(event_board, "ray", board)
    return board


def test_of_steps_the_newest_is_kept_while_a_post_is_under_way(slow: SlowBoard) -> None:
    hooks = BoardHooks(slow)
    for step in range(1, 5):
        hooks.report({"kind": "step", "step": step})
    assert slow.kinds() == [1] and not slow.waits, "no step waits for the board"
    slow.answers = True
    hooks.report({"kind": "step", "step": 5})
    assert slow.kinds() == [5]


def test_an_epoch_is_posted_with_all_before_it_and_awaited(slow: SlowBoard) -> None:
    hooks = BoardHooks(slow)
    for step in (1, 2):
        hooks.report({"kind": "step", "step": step})
    hooks.report({"kind": "epoch"})
    assert slow.kinds() == [1, 2, "epoch"] and slow.waits == 1


def test_the_answer_to_a_post_carries_the_request_to_stop(slow: SlowBoard) -> None:
    hooks = BoardHooks(slow)
    hooks.report({"kind": "epoch"})
    assert not hooks.should_stop()
    slow.board.request_stop()
    assert not hooks.should_stop(), "it has not posted since"
    hooks.report({"kind": "epoch"})
    assert hooks.should_stop()


def test_progress_is_told_once_in_a_while(slow: SlowBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock, hooks = Clock(), BoardHooks(slow)
    monkeypatch.setattr(event_board, "time", clock)
    slow.answers = True
    hooks.progress()
    hooks.progress()
    assert slow.kinds() == ["progress"]
    clock.now += event_board.PROGRESS_SECONDS + 0.1
    hooks.progress()
    assert slow.kinds() == ["progress"]
