"""The plan that is printed before a training, and errors with advice if the memory is too small."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.config.settings import EncoderSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.training_plan import checked_plan, open_data

SETTINGS = Settings(
    dataset="tiny", encoder=EncoderSettings(hidden_size=8, max_length=5), train=TrainSettings(batch_size=8)
)


@pytest.fixture
def data(prepared: Path) -> PreparedData:
    return open_prepared(prepared)


def has_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=count))


def test_the_plan_says_data_steps_and_memory(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 2**40)
    text = checked_plan(SETTINGS, data, WorkerPlan(2, False, 1.0))
    assert "30 training users, 12 items, 8 validation and 10 test users" in text
    assert "plan: 2 workers, 1 CPU each; 4 steps of 8 users an epoch, at most 100 epochs" in text
    assert "item table: whole on every worker" in text and " MiB in all" in text
    targets = data.manifest.counts["validation"]["positive_targets"]
    users = f"only {targets} validation users have a liked target"
    assert f"WARNING: {users}: one of them is worth {1 / targets:.3f} of HR_p" in text


def test_what_does_not_fit_is_refused_with_ways_out(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 2**30)
    wide = replace(SETTINGS, encoder=EncoderSettings(hidden_size=20_000, max_length=5))
    with pytest.raises(InputError, match=r"needs about 2 workers x .* GiB, the free memory is 1\.0 GiB; try .*,"):
        checked_plan(wide, data, WorkerPlan(2, False, 1.0))
    with pytest.raises(InputError, match=r"needs about \d.* GiB, a GPU has 1\.0 GiB; try .*--encoder.hidden-size"):
        checked_plan(wide, data, WorkerPlan(1, True, 1.0, gpu_bytes=2**30))
    assert checked_plan(wide, data, WorkerPlan(1, True, 1.0)), "of a GPU of another machine nothing is known"
    assert checked_plan(replace(wide, ray_address="head:6379"), data, WorkerPlan(2, False, 1.0)), "nor of a cluster"


def test_too_few_users_are_refused(data: PreparedData) -> None:
    with pytest.raises(InputError, match="--num-workers"):
        checked_plan(replace(SETTINGS, train=TrainSettings(batch_size=500)), data, WorkerPlan(40, False, 1.0))


def test_data_are_opened_by_name(
    prepared_writer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_writer(tmp_path / "data/prepared/tiny")
    monkeypatch.chdir(tmp_path)
    assert open_data(SETTINGS).num_items == 12
    with pytest.raises(InputError, match=r"--dataset is '\.\./tiny'; a name may only have letters"):
        open_data(replace(SETTINGS, dataset="../tiny"))
    with pytest.raises(InputError, match=r"unknown dataset 'ml1n'.*did you mean 'ml1m'"):
        open_data(replace(SETTINGS, dataset="ml1n"))
