"""Waits for another thread or process."""

import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds after which a wait fails. It only matters if something is broken."""


def wait_until(
    happened: Callable[[], object], unless: Callable[[], object] = lambda: False, pause: float = 0.02
) -> None:
    """Returns when `happened` is true. Raises AssertionError if `unless` is true first, as for a process that ended.

    pause: seconds between checks.
    """
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert not unless(), "it ended before"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
