"""What workers and the driver tell each other over Ray: events one way, the request to stop the other.

The driver's watchdog goes by them, too.
"""

import contextlib
import os
import signal
import time
from typing import Any

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pnfrec_dist.training.loop import Event

PROGRESS_SECONDS = 1.0


class Board:
    """Where workers leave events for the driver, and the driver leaves the request to stop."""

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


def remote_board() -> Any:
    """On the driver's node, whose loss ends the run anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote_class: Any = ray.remote(num_cpus=0)(Board)
    return remote_class.options(scheduling_strategy=here).remote()


class BoardHooks:
    """The loop's hooks. Posts without waiting; the answer to the last post tells whether to stop.

    Of step events only the newest is kept while a post is under way, so a slow driver never slows a step.
    """

    def __init__(self, board: Any) -> None:
        self.board = board
        self.pending: list[Event] = []
        self.answer: Any = None
        self.stop = False
        self.last_post = 0.0

    def report(self, event: Event) -> None:
        if self.pending and self.pending[-1]["kind"] == event["kind"] == "step":
            self.pending[-1] = event
        else:
            self.pending.append(event)
        if event["kind"] not in ("step", "warning"):
            self.flush()
        elif self._answered():
            self._post()

    def progress(self) -> None:
        """Tells that the worker is alive and getting on."""
        if time.monotonic() - self.last_post > PROGRESS_SECONDS and self._answered():
            self.pending.append({"kind": "progress"})
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


class FailureReport(ray.train.UserCallback):
    """Tells the driver why workers are started again; runs in Ray Train's controller."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reasons = {rank: _reason(error) for rank, error in sorted(worker_exceptions.items())}
        ray.get(self.board.post.remote([{"kind": "failure", "reasons": reasons}]))


def _reason(error: Exception) -> str:
    """The line of an error that says most: the last of a worker's traceback, the first of Ray's own."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1].strip() if "Traceback" in str(error) else lines[0].strip()


@ray.remote(num_cpus=0)
def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Watchdog:
    """Kills workers that make no progress for some time, as Ray Train will then start them again.

    It goes by what they post: a worker that hangs, or is stopped, keeps the others from their next step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.pids: dict[str, list[int]] = {}
        self.last = time.monotonic()

    def see(self, event: Event) -> None:
        self.last = time.monotonic()
        if event["kind"] == "failure":
            self.pids = {}
        elif event["kind"] == "worker":
            self.pids.setdefault(event["node"], []).append(event["pid"])

    def check(self) -> str:
        """Kills the workers if it is time to; a line about it, or ""."""
        silence = time.monotonic() - self.last
        if not self.pids or silence < self.seconds:
            return ""
        for node, pids in self.pids.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            _kill.options(scheduling_strategy=there).remote(pids)
        self.pids = {}
        return f"no progress for {silence:.0f} s (--stall-timeout {self.seconds:g}); the workers are killed"
