"""Signals. They are raised in this thread, because a signal sent to the process may reach another thread first."""

import signal
import threading

import pytest

from pnfrec_dist.cluster.stop_signals import kept_sigterm, stop_requests, terminated_as_interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set() and "stopping after this step" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_sigterm_does_what_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_as_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_leaves_signals_alone() -> None:
    """Python allows only the main thread to set handlers."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with terminated_as_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_who_replaces_sigterm_within_does_so_for_a_while() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with kept_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
