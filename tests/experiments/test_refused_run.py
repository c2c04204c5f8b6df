"""A training that MLflow refuses, also one that is over before MLflow has answered."""

from pathlib import Path

import pytest
from helpers.commands import called

from pnfrec_dist.errors import InputError
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.train import main

FLAGS = ["--dataset", "tiny", "--epochs", "1", "--num-workers", "1", "--encoder.hidden-size", "8"]


@pytest.mark.parametrize("is_late", [False, True])
def test_a_refused_training_is_one_line(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_late: bool
) -> None:
    directory = prepared.parent
    (directory / "mlflow.db").write_text("no database\n" * 100)
    if is_late:
        end = TrackedRun.close
        accepted = TrackedRun.require_accepted
        closed: list[bool] = []
        monkeypatch.setattr(TrackedRun, "close", lambda run, status: (end(run, status), closed.append(True)))
        monkeypatch.setattr(TrackedRun, "require_accepted", lambda run: accepted(run) if closed else None)
    with pytest.raises(
        InputError, match=r"refused to start a run: .*file is not a database; check MLFLOW_TRACKING_URI"
    ):
        called(main, directory, *FLAGS, "--data-dir", str(directory), "--train.batch-size", "8")
    assert "records wait" not in capsys.readouterr().out
