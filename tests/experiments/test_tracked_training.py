"""The outcome of a training, and what is printed."""

import pytest

from pnfrec_dist.experiments.tracked_training import Outcome, _status
from pnfrec_dist.tracking.spool import FAILED, FINISHED, KILLED
from pnfrec_dist.training.events import (
    BestTested,
    Diverged,
    Earlier,
    EpochDone,
    Event,
    Refused,
    Stopped,
    Trained,
    WorkersFailed,
)
from pnfrec_dist.training.loop import Phase

EPOCHS = [EpochDone(number, {"val/ndcg_p_at_10": 0.1 * number}, 1.0, is_best=True) for number in (1, 2, 3)]
TESTED = BestTested({"hr_p_at_10": 0.5}, {}, 3, "checkpoints/step-3")


def outcome_of(*events: Event) -> Outcome:
    outcome = Outcome()
    for event in events:
        outcome.see(event)
    return outcome


def test_epochs_are_counted_once_in_their_order() -> None:
    """Workers that start again report earlier epochs again."""
    outcome = outcome_of(EPOCHS[1], Earlier(EPOCHS[:2]), EPOCHS[2], WorkersFailed({0: "died"}), Earlier(EPOCHS))
    assert outcome.in_order == EPOCHS


@pytest.mark.parametrize(
    ("events", "phase", "status", "reason"),
    [
        ([Trained(3, "c"), TESTED], "both", FINISHED, ""),
        ([Trained(3, "c")], "train", FINISHED, ""),
        ([Trained(3, "c")], "both", KILLED, ""),
        ([TESTED], "test", FINISHED, ""),
        ([Stopped(2, 1)], "both", KILLED, ""),
        ([Diverged(1, 2, 1, "f")], "both", FAILED, "the loss or a gradient is not finite"),
        ([Refused("no such data")], "train", FAILED, "no such data"),
    ],
)
def test_mlflow_is_told_what_came_true(events: list[Event], phase: Phase, status: str, reason: str) -> None:
    outcome = outcome_of(*events)
    assert (_status(outcome, phase), outcome.reason) == (status, reason)


def test_an_error_is_the_reason_before_all_others() -> None:
    outcome = outcome_of(Refused("no such data"))
    outcome.failed = "workers failed"
    assert outcome.reason == "workers failed"
