"""python -m pnfrec_dist.tracking flush, as a user starts it, with a database of MLflow."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FINISHED
from pnfrec_dist.training.run_directory import Run


def flush(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pnfrec_dist.tracking", *args]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=200, check=False)


def test_what_waits_is_sent_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data, settings = open_prepared(prepared), Settings(dataset="tiny")
    run = Run(tmp_path / "runs/r", {}, data.manifest.digest)
    run.write()
    tracked = TrackedRun(run.directory, run.key, f"sqlite:///{tmp_path}/mlflow.db", print)
    tracked.keep(opening_of_training(settings, data.manifest, data.directory))
    tracked.log_metrics("epoch/1", {"train/loss": 0.5}, 1)
    tracked.add("status/0", "status", status=FINISHED)
    done = flush(tmp_path, "flush")
    assert done.returncode == 0 and "runs/r: 3 records sent" in done.stdout, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    (sent,) = client.search_runs([experiment.experiment_id])
    assert (sent.info.status, sent.data.metrics["train/loss"]) == (FINISHED, 0.5)
    assert "runs/r: all records were sent before" in flush(tmp_path, "flush", "runs/r").stdout


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    done = flush(tmp_path, "flush", "nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere has no tracking.jsonl")
    assert "no records in runs" in flush(tmp_path, "flush").stdout
    assert "required: command" in flush(tmp_path).stderr
