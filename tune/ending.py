"""Ends a search early: on a signal, or when the time budget is used up."""

import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.tune import Stopper

POLL_SECONDS = 1.0


class Ending(Stopper):
    """Asks the trials to stop and waits for them; then Tune ends the search.

    Tune itself would kill a trial ten seconds after asking it to stop. The step in progress and its checkpoint may take
    longer than that.
    """

    def __init__(
        self,
        asked: threading.Event,
        seconds_left: float | None,
        running: Callable[[], list[Any]],
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """asked: set by a signal; seconds_left: of the time budget; running: gives handles of the trials' actors;
        on_poll: called every time Tune asks whether to end."""
        self.asked, self.running, self.on_poll = asked, running, on_poll
        self.deadline = None if seconds_left is None else time.monotonic() + seconds_left
        self.is_cut = False
        """whether the time budget ended the search"""
        self.is_over = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune stores it to restore a search, which is not used here."""
        return {}

    def stop_all(self) -> bool:
        self.is_cut = self.is_cut or (self.deadline is not None and time.monotonic() >= self.deadline)
        if (self.asked.is_set() or self.is_cut) and not self.is_over:
            left = [actor.cleanup.remote() for actor in self.running()]
            while left:  # a dead actor answers at once, with an error that is ignored
                _, left = ray.wait(left, timeout=POLL_SECONDS)
                self.on_poll()  # kills an actor that hangs
            self.is_over = True
        if not self.is_over:
            self.on_poll()
        return self.is_over
