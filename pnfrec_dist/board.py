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

from pnfrec_dist.errors import RunError
from pnfrec_dist.training.loop import Event

PROGRESS_SECONDS = 1.0
WAITING_SECONDS, START_SECONDS = 45.0, 50.0
"""How long workers may take to begin before the driver says so; what they are given beyond the stall timeout."""


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

    It goes by what they post: a worker that hangs, or is stopped, keeps the others from their next step. Where one
    hangs before its first post, there is no process known to kill: the run ends.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.workers: dict[int, tuple[str, int]] = {}
        """rank -> (node, pid)"""
        self.last = time.monotonic()
        self.reason = ""
        """of the last failure"""
        self._told = False

    def see(self, event: Event) -> None:
        self.last, self._told = time.monotonic(), False
        if event["kind"] == "failure":
            self.workers = {}
            self.reason = "; ".join(f"worker {rank}: {reason}" for rank, reason in event["reasons"].items())
        elif event["kind"] == "worker":
            self.workers[event["rank"]] = (event["node"], event["pid"])
        elif event["kind"] == "started":  # there may have been more before
            self.workers = {rank: at for rank, at in self.workers.items() if rank < event["workers"]}

    def check(self) -> str:
        """Kills the workers if it is time to; a line about it, or "". Raises RunError if none began in time."""
        silence = time.monotonic() - self.last
        if not self.workers:
            if silence > self.seconds + START_SECONDS:
                limit = f"--stall-timeout {self.seconds:g} and {START_SECONDS:g} s to start"
                way_out = "see whether the cluster has room, and type the same command again"
                raise RunError(f"no worker has begun for {silence:.0f} s ({limit}); {way_out}")
            if silence < WAITING_SECONDS or self._told:
                return ""
            self._told = True
            return f"no worker has begun for {silence:.0f} s; Ray waits for room or for processes that start"
        if silence < self.seconds:
            return ""
        pids: dict[str, list[int]] = {}
        for node, pid in self.workers.values():
            pids.setdefault(node, []).append(pid)
        for node, there in pids.items():
            _kill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(there)
        self.workers = {}
        return f"no progress for {silence:.0f} s (--stall-timeout {self.seconds:g}); the workers are killed"
