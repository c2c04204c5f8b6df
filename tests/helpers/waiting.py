"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds after which a wait fails; no test goes by them."""


def wait_until(
    happened: Callable[[], object], unless: Callable[[], object] = lambda: False, pause: float = 0.02
) -> None:
    """Returns once it has happened. Raises AssertionError when `unless` holds first, such as a process that ended.

    pause: seconds between looks.
    """
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert not unless(), "it ended before"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(pause)
