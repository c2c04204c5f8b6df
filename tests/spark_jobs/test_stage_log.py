"""Progress lines of a build."""

import time

import pytest

from spark_jobs.stage_log import StageLog


def test_counts_of_one_are_singular_and_reasons_stay(capsys: pytest.CaptureFixture[str]) -> None:
    log = StageLog(time.monotonic())
    log.done("train_users", users=1, rows=1_000, positive_targets=1, holdout_interactions=0)
    log.done("quarantined", rows=1, **{"bad_timestamps": 1})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("train users    1 user  1,000 rows  1 positive target  0 holdout interactions")
    assert second.endswith("1 row  1 bad timestamps")
    assert log.counts["train_users"]["positive_targets"] == 1
