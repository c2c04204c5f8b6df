"""The Python interface: what it takes, what it refuses in one line, and several trainings in one process."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pnfrec_dist as pnfrec
from pnfrec_dist.errors import InputError

SMALL = {"epochs": 1, "encoder.hidden_size": 8, "encoder.num_blocks": 1, "train.batch_size": 8}


def settings(directory: Path, **changes: Any) -> pnfrec.Settings:
    places = {"data_dir": directory / "data", "output_dir": directory / "runs"}
    return pnfrec.train_settings("tiny", changes=SMALL | places | changes)


@pytest.fixture
def directory(prepared_writer: Callable[..., Path], tmp_path: Path) -> Path:
    prepared_writer(tmp_path / "data" / "tiny")
    return tmp_path


def test_changes_are_the_flags_and_stay_the_callers() -> None:
    own = {"hidden_size": np.int64(32)}
    changes = {"encoder": own, "encoder.num_blocks": 1, "evaluation.cutoffs": np.array([5, 10]), "data_dir": Path("x")}
    found = pnfrec.train_settings("ml1m", changes=changes)
    assert (found.encoder.hidden_size, found.encoder.num_blocks) == (32, 1)
    assert (found.evaluation.cutoffs, found.data_dir) == ((5, 10), "x")
    assert own == {"hidden_size": 32} and len(changes) == 4
    by_flag = pnfrec.train_settings("ml1m", model="sasrec")
    assert (by_flag.encoder.history, by_flag.loss.alpha) == ("all", 0.0)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"changes": {"model": "sasrec"}}, "changes has 'model'; give it as model='sasrec'"),
        ({"changes": {"config": "ml1m_paper"}}, "changes has 'config'; give it as config='ml1m_paper'"),
        ({"changes": {"dataset": "ml1m"}}, "changes has 'dataset'; give it as dataset='ml1m'"),
        ({"changes": {"dry_run": True}}, "changes has 'dry_run'; train"),
        ({"changes": {"epoch": 1}}, "unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"changes": {"epochs": "1"}}, "epochs is '1'; it must be a whole number"),
        ({"changes": None}, "changes is None; it must be a mapping"),
        ({"changes": {5: 3}}, "it must be a mapping such as"),
        ({"changes": {"encoder": {5: 3}}}, "unknown setting 'encoder.5'"),
        ({"changes": {"encoder": 5, "encoder.hidden_size": 32}}, "encoder must be a mapping, not 5"),
        ({"model": 5}, "model is 5; it must be the name of a file in conf/model/"),
        ({"model": "sasrek"}, "unknown model 'sasrek'"),
        ({"config": Path("nowhere.yaml")}, "--config is 'nowhere.yaml', and there is no such file"),
        ({"dataset": ""}, "dataset is ''; it must be the name of a prepared data set"),
        ({"dataset": 5}, "dataset is 5; it must be the name of a prepared data set"),
    ],
)
def test_wrong_settings_are_one_line(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        given: dict[str, Any] = {"dataset": "ml1m"} | keywords
        pnfrec.train_settings(**given)
    assert said in str(caught.value)


def test_trainings_in_two_threads_equal_those_one_after_another(directory: Path) -> None:
    """And torch's random state is the caller's own."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    alone = [pnfrec.train(settings(directory, seed=seed, output_dir=directory / "a")).test for seed in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    found: dict[int, dict[str, float]] = {}

    def train(seed: int) -> None:
        found[seed] = pnfrec.train(settings(directory, seed=seed, output_dir=directory / f"b{seed}")).test

    threads = [threading.Thread(target=train, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[1], found[2]] == alone


def test_an_error_of_the_callers_function_reaches_the_caller(directory: Path) -> None:
    class OwnError(Exception):
        pass

    def fail(_: object) -> None:
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        pnfrec.train(settings(directory), on_event=fail)
    assert pnfrec.train(settings(directory)).best_epoch == 1


def test_arguments_of_another_kind_are_one_line(directory: Path) -> None:
    run = pnfrec.train(settings(directory))
    model, data = pnfrec.load_model(run), pnfrec.open_prepared(directory / "data/tiny")
    assert repr(run) == f"TrainedRun(directory={run.directory!r}, best_epoch=1)"
    for call, said in (
        (lambda: pnfrec.train("tiny"), "it must be the result of train_settings()"),  # type: ignore[arg-type]
        (lambda: pnfrec.evaluate(run, data), "it must be the result of load_model()"),  # type: ignore[arg-type]
        (lambda: pnfrec.evaluate(model, "data/tiny"), "it must be the result of open_prepared()"),  # type: ignore[arg-type]
        (lambda: pnfrec.evaluate(model, data, "train"), "it must be 'validation' or 'test'"),  # type: ignore[arg-type]
        (lambda: pnfrec.evaluate(model, data, gamma=-1), "gamma is -1; it must be a finite number >= 0"),
    ):
        with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
            call()
        assert said in str(caught.value)


def test_the_names_are_found_by_completion() -> None:
    assert set(pnfrec.__all__) < set(dir(pnfrec))
