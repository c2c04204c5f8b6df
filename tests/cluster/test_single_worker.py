"""A training with one worker in this process: its last event, one-line errors, and restored torch threads."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_training import SETTINGS

from pnfrec_dist.cluster.single_worker import run_here
from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import RunError
from pnfrec_dist.training.events import BestTested, Event, Refused, Started, Stopped
from pnfrec_dist.training.loop import Hooks, Phase

PLAN = WorkerPlan(1, False, 2.0, in_this_process=True)


@pytest.mark.parametrize(("phase", "last"), [("both", "BestTested"), ("train", "Trained")])
def test_it_trains_in_the_threads_of_the_plan_and_tests_where_asked(
    prepared: Path, tmp_path: Path, phase: Phase, last: str
) -> None:
    events, threads = list[Event](), set[int]()

    def report(event: Event) -> None:
        events.append(event)
        threads.add(torch.get_num_threads())

    before = torch.get_num_threads()
    run_here(SETTINGS, PLAN, open_prepared(prepared), tmp_path / "run", Hooks(report, lambda: False), phase)
    assert type(events[-1]).__name__ == last
    assert threads == {2} and torch.get_num_threads() == before
    assert [event.workers for event in events if isinstance(event, Started)] == [1]


def test_a_stop_request_ends_it_with_a_checkpoint_to_go_on_from(prepared: Path, tmp_path: Path) -> None:
    data, events = open_prepared(prepared), list[Event]()
    run_here(SETTINGS, PLAN, data, tmp_path / "run", Hooks(events.append, lambda: True))
    assert events[-1] == Stopped(1, 1)
    run_here(SETTINGS, PLAN, data, tmp_path / "run", Hooks(events.append, lambda: False))
    assert isinstance(events[-1], BestTested)
    assert [(event.epoch, event.step) for event in events if isinstance(event, Started)] == [(1, 0), (1, 1)]


def test_an_error_of_the_loop_is_a_line_and_its_traceback_a_file(prepared: Path, tmp_path: Path) -> None:
    def report(event: Event) -> None:
        raise ValueError("a\nb")

    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match=rf"^the training failed: ValueError: a \(more in {tmp_path}/run/failure.txt\)$"):
        run_here(SETTINGS, PLAN, open_prepared(prepared), tmp_path / "run", Hooks(report, lambda: False))
    assert "ValueError: a\nb" in (tmp_path / "run/failure.txt").read_text()


def test_a_reader_that_went_away_is_no_failure_of_the_training(prepared: Path, tmp_path: Path) -> None:
    def report(event: Event) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_here(SETTINGS, PLAN, open_prepared(prepared), tmp_path / "run", Hooks(report, lambda: False))


def test_wrong_input_is_told_as_the_workers_tell_it(prepared: Path, tmp_path: Path) -> None:
    events = list[Event]()
    run_here(SETTINGS, PLAN, open_prepared(prepared), tmp_path / "run", Hooks(events.append, lambda: False), "test")
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert "the best epoch, 0, is lost" in refused.text
