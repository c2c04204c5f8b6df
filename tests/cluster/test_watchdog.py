"""The watchdog with a fake clock. Kills are tested with real workers in integration/test_train_kills.py."""

import pytest

from pnfrec_dist.cluster import watchdog
from pnfrec_dist.cluster.watchdog import START_SECONDS, WAITING_SECONDS, Watchdog
from pnfrec_dist.errors import RunError
from pnfrec_dist.training.events import Started, WorkersFailed, WorkerStarted


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def test_workers_that_never_begin_end_the_run(clock: Clock) -> None:
    watchdog = Watchdog(100.0)
    clock.now += WAITING_SECONDS
    assert "no worker has started for 45 s" in watchdog.check()
    clock.now += 10
    assert watchdog.check() == "", "said once"
    watchdog.see(WorkersFailed({0: "died"}))
    assert watchdog.reason == "worker 0: died"
    clock.now += WAITING_SECONDS
    assert watchdog.check()
    clock.now += 100 + START_SECONDS
    with pytest.raises(RunError, match="--stall-timeout 100 and 50 s"):
        watchdog.check()


def test_it_knows_the_workers_of_the_moment(clock: Clock) -> None:
    watchdog = Watchdog(100.0)
    for rank in range(3):
        watchdog.see(WorkerStarted(rank, 3, "a", 10 + rank))
    watchdog.see(WorkerStarted(0, 2, "b", 20))
    watchdog.see(Started(1, 0, workers=2))
    assert watchdog.workers == {0: ("b", 20), 1: ("a", 11)}
    clock.now += 99
    assert watchdog.check() == ""
    watchdog.see(WorkersFailed({}))
    assert not watchdog.workers
