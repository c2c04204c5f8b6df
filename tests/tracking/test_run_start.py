"""What MLflow records of a run at its start."""

from pathlib import Path

import pytest

from pnfrec_dist.config.settings import EvaluationSettings, LossSettings, Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.tracking import run_start
from pnfrec_dist.tracking.run_start import code_versions, dataset_input, opening_of_training, origin_tags


def test_a_training_is_named_and_its_settings_are_params(prepared: Path) -> None:
    data = open_prepared(prepared)
    settings = Settings(
        dataset="tiny",
        model="pnfrec",
        epochs=300,
        seed=7,
        loss=LossSettings(0.45),
        evaluation=EvaluationSettings(select_on="auto"),
    )
    found = opening_of_training(settings, data.manifest, data.directory)
    assert (found.name, found.parent) == ("pnfrec tiny beta=0 seed 7", "")
    assert found.params["loss.alpha"] == "0.45" and found.tags["seed"] == "7"
    assert opening_of_training(settings, data.manifest, data.directory, "a", "p").name == "a"


def test_data_and_code_are_told(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_prepared(prepared)
    monkeypatch.setattr(run_start, "git_commit", lambda: "")
    tags = origin_tags(data.manifest)
    assert tags["data_digest"] == data.manifest.digest and "mlflow.source.git.commit" not in tags
    assert "torch " in tags["versions"] and "Python 3" in tags["versions"]
    assert code_versions().startswith("no repositor")
    monkeypatch.setattr(run_start, "git_commit", lambda: "0123456789abcdef-dirty")
    assert origin_tags(data.manifest)["mlflow.source.git.commit"] == "0123456789abcdef-dirty"
    assert code_versions().startswith("0123456789ab, torch ")
    assert len(dataset_input(data.manifest, data.directory)["digest"]) <= 36, "MLflow takes no longer one"
