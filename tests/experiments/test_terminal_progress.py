"""The lines of a training in a log file."""

import pytest

from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION
from pnfrec_dist.experiments import terminal_progress
from pnfrec_dist.experiments.terminal_progress import (
    LINE_SECONDS,
    ProgressReport,
    duration,
    headline_table,
    warning_of_full_lists,
)
from pnfrec_dist.training.events import Alive, EpochDone, Event, Started, StepDone, Warned, WorkersFailed


def test_a_log_has_a_line_for_an_epoch_and_what_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"train/loss": 1.5, LOGGED_SELECTION: 0.25, "train/users_per_s": 1234.0, "train/skipped_steps": 2.0}
    events: list[Event] = [
        Started(1, 0, workers=2),
        StepDone(1, 1, 4, 1.5, 100.0),
        Alive(0.5),
        EpochDone(1, metrics, 3.0, is_best=True),
        Warned("the disk is full"),
        WorkersFailed({1: "died"}),
        Started(2, 3, workers=1),
    ]
    with ProgressReport(max_epochs=9, first_epoch=1, num_workers=2) as report:
        for event in events:
            report.show(event)
    assert capsys.readouterr().out.splitlines() == [
        "epoch   1/9  loss 1.5000  val NDCG_p@10 0.2500  1,234 users/s  3.0 s  2 steps skipped  *best",
        "warning: the disk is full",
        "warning: workers failed (worker 1: died)",
        "workers run again (1 of 2), from epoch 2 after step 3",
    ]


def test_a_long_epoch_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(terminal_progress.time, "monotonic", lambda: now)
    with ProgressReport(max_epochs=2, first_epoch=1, num_workers=2) as report:
        for number in (1, 2, 3):
            report.show(StepDone(1, number, 10, 1.5, 100.0))
            now += 0.6 * LINE_SECONDS
        for share in (0.25, 0.5):
            report.show(Alive(share))
            now += 0.5 * LINE_SECONDS
    line, evaluation = capsys.readouterr().out.splitlines()
    assert evaluation == "evaluating held-out users, 50% done"
    assert line == "epoch 1/2  step 3/10  loss 1.5000  100 users/s  at most 5m06s left"


def test_lists_that_hold_every_target_are_warned_of() -> None:
    full, other = {"hr_p_at_10": 1.0}, {"hr_p_at_10": 0.99}
    assert "whatever the model" in warning_of_full_lists({"pnfrec": full, "popularity": full})
    assert warning_of_full_lists({"pnfrec": full, "popularity": other}) == ""
    assert warning_of_full_lists({"pnfrec": {"ndcg_p_at_10": 1.0}}) == "", "HR is not measured"


def test_durations_and_tables_for_people() -> None:
    assert [duration(seconds) for seconds in (3725, 125, 7)] == ["1h02m", "2m05s", "7s"]
    head, row = headline_table({"pnfrec": {"hr_p_at_10": 0.5}}).splitlines()
    assert head.split() == ["model", "HR_p@10", "NDCG_p@10", "dHR@10", "dNDCG@10"]
    assert row.split() == ["pnfrec", "0.5000", "-", "-", "-"]
