"""The final training: as its run was, for as many epochs as the run's best, on data without a holdout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import EvaluationSettings, Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.final_training import best_of, chosen_by, final_settings
from pnfrec_dist.experiments.training_plan import open_data
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.artifact import of_checkpoint, weights_digest
from pnfrec_dist.inference.warm_start_source import open_source
from pnfrec_dist.training.result import read_result
from pnfrec_dist.training.run_directory import Run, read_run

EVALUATED = replace(SETTINGS, epochs=3, evaluation=EvaluationSettings(select_on="points", gamma="auto"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    """evaluated/tiny and whole/tiny, with the same train, and the run runs/one on the first."""
    place = tmp_path_factory.mktemp("final")
    data = open_prepared(Location(prepared_writer(place / "evaluated" / "tiny")))
    prepared_writer(place / "whole" / "tiny", has_holdout=False)
    settings = replace(EVALUATED, data_dir=str(place / "evaluated"), num_workers=1)
    run = Run(place / "runs" / "one", to_mapping(settings), data.manifest.digest, ended="finished")
    run.write()
    trained(data, settings, run.directory)
    return place


@pytest.fixture
def settings(place: Path) -> Settings:
    run = str(place / "runs" / "one")
    return final_settings(run, ["--final", run, "--data-dir", str(place / "whole")])


def test_it_has_the_epochs_and_weights_that_validation_chose(place: Path, settings: Settings) -> None:
    run, result = place / "runs" / "one", read_result(place / "runs" / "one")
    assert result is not None and "gamma" in result.weights
    evaluated = replace(EVALUATED, data_dir=str(place / "whole"), num_workers=1, final=str(run))
    evaluation = replace(evaluated.evaluation, gamma=result.weights["gamma"])
    assert settings == replace(evaluated, epochs=result.best_epoch, evaluation=evaluation)
    assert chosen_by(settings) == result and best_of(result).is_best


def test_it_trains_as_the_run_did_and_has_no_test(place: Path, settings: Settings, tmp_path: Path) -> None:
    """The same train, so the same weights, whatever was evaluated meanwhile."""
    data = open_data(settings)
    final = of_checkpoint(trained(data, settings, tmp_path / "final"), settings, data)
    found = read_result(tmp_path / "final")
    assert found is not None and found.test == found.floors == found.weights == {}
    assert found.best_epoch == settings.epochs == len(found.epochs)
    assert not any(name.startswith("val/") for epoch in found.epochs for name in epoch.metrics)
    assert [file.name for file in (tmp_path / "final" / "result").iterdir()] == ["result.json"]
    of_run = open_prepared(Location(place / "evaluated" / "tiny"))
    evaluated = replace(EVALUATED, epochs=settings.epochs)
    other = of_checkpoint(trained(of_run, evaluated, tmp_path / "other"), evaluated, of_run)
    weights, others = (
        dict(one.model.encoders.named_parameters()) | {"items": one.model.item_table.weight} for one in (final, other)
    )
    assert weights_digest(weights) == weights_digest(others)
    assert final.gamma(None) == settings.evaluation.gamma


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--encoder.dropout", "0.5"], r"--encoder.dropout is 0.5, but --final trains as .*one did, with 0.1"),
        (["--epochs", "9"], "--epochs is 9"),
        (["--seed", "1"], "--seed is 1"),
        (["--model", "sasrec"], "--model is 'sasrec'"),
        (["--train.patience", "3"], "--train.patience is 3"),
    ],
)
def test_flags_that_change_the_model_are_refused(place: Path, flags: list[str], told: str) -> None:
    run = str(place / "runs" / "one")
    with pytest.raises(InputError, match=told):
        final_settings(run, ["--final", run, *flags])


def test_runs_that_choose_nothing_are_refused(place: Path, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such directory"):
        final_settings("runs/none", [])
    with pytest.raises(InputError, match="is not a run"):
        final_settings(str(tmp_path), [])
    Run(tmp_path / "unfinished", to_mapping(EVALUATED), "").write()
    with pytest.raises(InputError, match="has no result yet"):
        final_settings(str(tmp_path / "unfinished"), [])
    Run(tmp_path / "final", to_mapping(settings), "").write()
    with pytest.raises(InputError, match=r"is a final training itself; name .*one, its run"):
        final_settings(str(tmp_path / "final"), [])


def test_data_must_hold_out_nothing_for_it_and_something_for_others(place: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match=r"--final trains on all interactions, but .*evaluated/tiny holds some out"):
        open_data(replace(settings, data_dir=str(place / "evaluated")))
    with pytest.raises(InputError, match=r"whole/tiny has no validation users \(split.holdout none\)"):
        open_data(replace(settings, final=""))


def test_an_evaluated_training_does_not_begin_with_a_final_model(
    place: Path, settings: Settings, tmp_path: Path
) -> None:
    run = Run(tmp_path / "final", to_mapping(settings), open_data(settings).manifest.digest)
    run.write()
    trained(open_data(settings), settings, run.directory)
    assert read_run(run.directory).settings["final"] == str(place / "runs" / "one")
    with pytest.raises(InputError, match="was trained on all interactions, so validation and test would tell nothing"):
        open_source(str(run.directory), replace(EVALUATED, data_dir=str(place / "whole")))
    assert len(open_source(str(run.directory), settings).raw_ids) == 12
