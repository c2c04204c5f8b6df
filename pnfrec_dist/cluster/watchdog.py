"""The watchdog: kills workers that make no progress, and remembers why workers failed."""

import contextlib
import os
import signal
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pnfrec_dist.errors import RunError
from pnfrec_dist.training.events import Event, Started, WorkersFailed, WorkerStarted

WAITING_SECONDS, START_SECONDS = 45.0, 50.0
"""How long workers may take to start before a warning; how much longer than the stall timeout before the run ends."""


@ray.remote(num_cpus=0)
def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Watchdog:
    """Kills workers that make no progress for some time. Ray Train then starts them again.

    Every event counts as progress. If a worker hangs or is stopped, the others cannot take their next step, so no
    events come. If workers hang before their first event, their processes are not known, and the run ends.
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
        elif isinstance(event, Started):  # before, there may have been more workers
            self.workers = {rank: at for rank, at in self.workers.items() if rank < event.workers}

    def check(self) -> str:
        """Kills the workers if they stall, and returns a warning or "". Raises RunError if none has started in time."""
        silence = time.monotonic() - self.last
        if not self.workers:
            if silence > self.seconds + START_SECONDS:
                limit = f"--stall-timeout {self.seconds:g} and {START_SECONDS:g} s to start"
                way_out = "check that the cluster has enough free CPUs or GPUs"
                raise RunError(f"no worker has started for {silence:.0f} s ({limit}); {way_out}")
            if silence < WAITING_SECONDS or self._told:
                return ""
            self._told = True
            return f"no worker has started for {silence:.0f} s; Ray waits for free CPUs or GPUs or for new processes"
        if silence < self.seconds:
            return ""
        pids: dict[str, list[int]] = {}
        for node, pid in self.workers.values():
            pids.setdefault(node, []).append(pid)
        for node, there in pids.items():
            _kill.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(there)
        self.workers = {}
        return f"no progress for {silence:.0f} s (--stall-timeout {self.seconds:g}); the workers are killed"
