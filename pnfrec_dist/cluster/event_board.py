"""The event board, a Ray actor. Workers post events to it and learn from it whether the driver asks them to stop.

It is a separate process that starts with every training, so nothing here imports torch or Ray Train.
"""

import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pnfrec_dist.training.events import Alive, Event, StepDone, Warned

PROGRESS_SECONDS = 1.0


class Board:
    """Holds the events of the workers for the driver, and the driver's request to stop."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stop = False

    def post(self, events: list[Event]) -> bool:
        self.events += events
        return self.stop

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def request_stop(self) -> None:
        self.stop = True


def beside_driver(board: type) -> Any:
    """An actor of this class on the driver's node. If that node is lost, the run ends anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote_class: Any = ray.remote(num_cpus=0)(board)
    return remote_class.options(scheduling_strategy=here).remote()


class BoardHooks:
    """The loop's hooks. They post without waiting; the answer to the last post says whether to stop.

    While a post is not answered yet, only the newest step event is kept, so a slow driver never slows down a step.
    """

    def __init__(self, board: Any) -> None:
        self.board = board
        self.pending: list[Event] = []
        self.answer: Any = None
        self.stop = False
        self.last_post = 0.0

    def report(self, event: Event) -> None:
        if self.pending and isinstance(self.pending[-1], StepDone) and isinstance(event, StepDone):
            self.pending[-1] = event
        else:
            self.pending.append(event)
        if not isinstance(event, StepDone | Warned):
            self.flush()
        elif self._answered():
            self._post()

    def progress(self, share: float) -> None:
        """Reports that the worker is alive, and the share of an evaluation that is done."""
        if time.monotonic() - self.last_post > PROGRESS_SECONDS and self._answered():
            self.pending.append(Alive(share))
            self._post()

    def should_stop(self) -> bool:
        self._answered()
        return self.stop

    def flush(self) -> None:
        """Posts everything and waits until the board has it."""
        self._post()
        self.stop = bool(ray.get(self.answer)) or self.stop

    def _post(self) -> None:
        self.answer = self.board.post.remote(self.pending)
        self.pending, self.last_post = [], time.monotonic()

    def _answered(self) -> bool:
        if self.answer is None:
            return True
        done, _ = ray.wait([self.answer], timeout=0)
        if done:
            self.stop = bool(ray.get(self.answer)) or self.stop
        return bool(done)
