"""The watchdog: kills workers that make no progress, and knows why workers failed."""

import contextlib
import os
import signal
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pnfrec_dist.errors import RunError
from pnfrec_dist.training.events import Event, Started, WorkersFailed, WorkerStarted

WAITING_SECONDS, START_SECONDS = 45.0, 50.0
"""How long workers may take to begin before the driver says so; what they are given beyond the stall timeout."""


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
        if isinstance(event, WorkersFailed):
            self.workers = {}
            self.reason = "; ".join(f"worker {rank}: {reason}" for rank, reason in event.reasons.items())
        elif isinstance(event, WorkerStarted):
            self.workers[event.rank] = (event.node, event.pid)
        elif isinstance(event, Started):  # there may have been more before
            self.workers = {rank: at for rank, at in self.workers.items() if rank < event.workers}

    def check(self) -> str:
        """Kills the workers if it is time to; a line about it, or "". Raises RunError if none began in time."""
        silence = time.monotonic() - self.last
        if not self.workers:
            if silence > self.seconds + START_SECONDS:
                limit = f"--stall-timeout {self.seconds:g} and {START_SECONDS:g} s to start"
                way_out = "see whether the cluster has room"
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
