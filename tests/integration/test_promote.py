"""The champion: who gets the alias, who does not, and the way back."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import called
from helpers.tracked import tracked_run
from mlflow import MlflowClient

from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.bootstrap import Interval
from pnfrec_dist.evaluation.metrics import SELECTION_METRIC
from pnfrec_dist.experiments.challenger import Compared, compare
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.other_catalog import PointRanks, rank_points
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.promote import main
from pnfrec_dist.train import main as train

pytestmark = pytest.mark.integration
NAME = "pnfrec-dist-tiny"


@pytest.fixture
def data(tmp_path: Path, prepared_writer: Callable[..., Path]) -> PreparedData:
    return open_prepared(Location(prepared_writer(tmp_path / "data" / "prepared" / "tiny")))


@pytest.fixture
def runs(tmp_path: Path, data: PreparedData, empty_mlflow: Callable[[Path], str]) -> list[Path]:
    """Three runs; the best on the validation points first."""
    found = [tracked_run(tmp_path / "runs", data, empty_mlflow(tmp_path), 1)]
    found += [tracked_run(tmp_path / "runs", data, f"sqlite:///{tmp_path / 'mlflow.db'}", seed) for seed in (2, 3)]
    scores = [
        rank_points(open_trained(str(run), str(data.directory.parent)), data, "validation").metrics[SELECTION_METRIC]
        for run in found
    ]
    assert len(set(scores)) == 3
    return [found[place] for place in np.argsort(scores)[::-1]]


def alias(directory: Path) -> str:
    client = MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def test_promotion_refusal_and_rollback(tmp_path: Path, runs: list[Path]) -> None:
    best, middle, worst = map(str, runs)
    assert "has no champion yet" in called(main, tmp_path, "--run", middle)
    assert alias(tmp_path) == "1"
    told = called(main, tmp_path, "--run", best)
    assert f"{best} beside version 1, the champion" in told and "champion: version 2, in place of version 1" in told
    assert alias(tmp_path) == "2"
    with pytest.raises(AssertionError, match="not promoted: NDCG_p@10 of the candidate is"):
        called(main, tmp_path, "--run", worst, "--margin", "0")
    assert alias(tmp_path) == "2"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tags = client.get_model_version(NAME, "2").tags
    assert tags["replaced"] == "1" and client.get_model_version(NAME, "1").tags["replaced_by"] == "2"
    row = told.splitlines()[next(n for n, line in enumerate(told.splitlines()) if line.startswith("candidate"))]
    assert tags["ndcg_p_at_10.candidate"] in row
    assert "version 1 again, in place of version 2" in called(main, tmp_path, "--rollback", "--dataset", "tiny")
    assert alias(tmp_path) == "1"
    with pytest.raises(InputError, match=f"version 1 of '{NAME}' replaced no other"):
        called(main, tmp_path, "--rollback", "--name", NAME)


def test_for_a_final_training_the_run_that_chose_it_is_compared(
    tmp_path: Path, runs: list[Path], prepared_writer: Callable[..., Path]
) -> None:
    prepared_writer(tmp_path / "whole" / "tiny", has_holdout=False)
    best, _, worst = map(str, runs)
    finals = []
    for run in (best, worst):
        where = ("--data-dir", "whole", "--output-dir", f"final-{len(finals)}", "--num-workers", "1")
        told = called(train, tmp_path, "--final", run, *where)
        assert f"final training: as {run}, whose best epoch 1 has val NDCG_p@10" in told
        assert f"This model has no test of its own. The test of {run}, which chose it:" in told
        finals.append(str(next((tmp_path / f"final-{len(finals)}").iterdir())))
    assert f"{finals[0]} is a final training; {best}, which chose it, is compared" in called(
        main, tmp_path, "--run", finals[0]
    )
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = client.get_model_version(NAME, alias(tmp_path))
    assert version.run_id is not None
    champion = client.get_run(version.run_id)
    assert champion.data.params["final"] == best and "no test of its own" in champion.data.tags["mlflow.note.content"]
    assert client.get_run(version.tags["compared"]).data.params["seed"] == best[-1]
    with pytest.raises(AssertionError, match="not promoted: NDCG_p@10 of the candidate is"):
        called(main, tmp_path, "--run", finals[1], "--margin", "0")
    told = called(main, tmp_path, "--run", best, "--dry-run")
    row = next(line for line in told.splitlines() if line.startswith("difference"))
    assert row.count("+.0000 [+.0000, +.0000]") == 3, "the champion is compared by the same run"


def test_a_dry_run_and_the_champion_itself_change_nothing(tmp_path: Path, runs: list[Path]) -> None:
    called(main, tmp_path, "--run", str(runs[0]))
    assert "dry run" in called(main, tmp_path, "--run", str(runs[0]), "--dry-run")
    assert "version 1 is the champion already" in called(main, tmp_path, "--run", str(runs[0]))
    versions = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_model_versions(f"name = '{NAME}'")
    assert [str(version.version) for version in versions] == ["1"] and alias(tmp_path) == "1"


def test_a_candidate_of_other_data_is_refused(
    tmp_path: Path, runs: list[Path], prepared_writer: Callable[..., Path]
) -> None:
    prepared_writer(tmp_path / "data" / "prepared" / "newer", seed=9)
    with pytest.raises(InputError, match=r"was trained on another state of the data than .*newer"):
        called(main, tmp_path, "--run", str(runs[0]), "--dataset", "newer")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--run is missing"),
        (["--rollback"], "--rollback needs --name"),
        (["--run", "runs/none"], "there is no directory 'runs/none'"),
        (["--run", "a", "--rollback", "--name", "b"], "--run"),
        (["--rollback", "--name", "b"], "has no champion; promote one"),
    ],
)
def test_wrong_input_is_told(tmp_path: Path, empty_mlflow: Callable[[Path], str], args: list[str], told: str) -> None:
    empty_mlflow(tmp_path)
    with pytest.raises(InputError, match=told):
        called(main, tmp_path, *args)


def of_ranks(trained_ranks: PointRanks, ranks: np.ndarray) -> PointRanks:
    gains = np.where(ranks <= 10, 1 / np.log2(ranks + 1.0), 0.0)
    liked = trained_ranks.points.target_is_positive
    return replace(trained_ranks, target_rank=ranks, metrics={SELECTION_METRIC: float(gains[liked].mean())})


def test_worse_is_significantly_lower_or_lower_by_more_than_the_margin(runs: list[Path], data: PreparedData) -> None:
    exported = open_trained(str(runs[0]), str(data.directory.parent))
    base = compare(exported, exported, data)
    assert base.problem(0.0) == "" and base.intervals[SELECTION_METRIC].difference == 0
    ones = np.ones(len(base.candidate.points), dtype=np.int64)
    first, second = of_ranks(base.candidate, ones), of_ranks(base.candidate, ones + 1)
    significant = Compared(second, first, {SELECTION_METRIC: Interval(-0.4, -0.5, -0.3)})
    assert "significantly lower" in significant.problem(0.99)
    unclear = Compared(second, first, {SELECTION_METRIC: Interval(-0.1, -0.3, 0.1)})
    assert "lower by 10.0%, more than --margin 0.05" in unclear.problem(0.05)
    assert unclear.problem(0.2) == ""
