"""The Python interface that pnfrec_dist/__init__.py offers: one process, without Ray and MLflow."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from pnfrec_dist.cluster.single_worker import run_here
from pnfrec_dist.cluster.worker_plan import WorkerOptions, WorkerPlan, plan_workers, this_machine
from pnfrec_dist.config.conf_files import settings_from_conf
from pnfrec_dist.config.mappings import flatten, override
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.experiments.tracked_training import Outcome, say_diverged, taken_up
from pnfrec_dist.experiments.training_plan import checked_plan, open_data
from pnfrec_dist.inference.gamma_search import Split
from pnfrec_dist.inference.loaded_model import Model
from pnfrec_dist.inference.recommender import require_gamma
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.training.checkpoint_manager import with_kept_precision
from pnfrec_dist.training.events import EpochDone, Event
from pnfrec_dist.training.loop import Hooks
from pnfrec_dist.training.run_directory import choose_run

_WHAT = {"dataset": "prepared data set", "model": "file in conf/model/", "config": "file in conf/train/"}
_TRAINING = threading.Lock()
"""A training draws from torch's random state, which all threads share."""


class _CallersError(RunError):
    """Wraps an error of the caller's own function on its way through the training."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished training."""

    directory: Path
    """runs/<run>, as the command writes it"""
    settings: Settings = field(repr=False)
    epochs: list[EpochDone] = field(repr=False)
    best_epoch: int
    """on validation users"""
    test: dict[str, float] = field(repr=False)
    """metrics of the best epoch on test users, such as ndcg_p_at_10"""
    floors: dict[str, dict[str, float]] = field(repr=False)
    """the same metrics for baselines without a model"""


def train_settings(
    dataset: str,
    *,
    model: str = "",
    config: str | Path = "",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> Settings:
    """The settings of `pnfrec train --dataset DATASET --model MODEL --config CONFIG`, with changes.

    changes: {"epochs": 3, "encoder.hidden_size": 32, ...}, with the dotted names of docs and MLflow.
    Raises InputError for unknown models, configs and settings, and for values out of range.
    """
    chosen = {"dataset": dataset, "model": model, "config": str(config) if isinstance(config, Path) else config}
    for name, value in chosen.items():
        if not isinstance(value, str) or (name == "dataset" and not value):
            raise InputError(f"{name} is {value!r}; it must be the name of a {_WHAT[name]}")
    if not isinstance(changes, Mapping) or not all(isinstance(name, str) for name in changes):
        raise InputError(f"changes is {changes!r}; it must be a mapping such as {{'encoder.hidden_size': 32}}")
    for name in chosen.keys() & changes.keys():
        raise InputError(
            f"changes has {name!r}; give it as {name}={changes[name]!r}, because it chooses files of conf/"
        )
    if "dry_run" in changes:
        raise InputError("changes has 'dry_run'; train() has no dry run; use pnfrec train --dry-run")
    return override(settings_from_conf(dataset, model, chosen["config"]), _nested(changes), "changes")


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """{"encoder": {"hidden_size": 32}} from dotted names, with plain values."""
    nested: dict[str, Any] = {}
    for name, value in flatten(dict(changes)).items():
        section, dot, key = name.rpartition(".")
        inner = nested.setdefault(section, {}) if dot else nested
        if isinstance(inner, dict):  # else it is not a section's mapping, and override() says so
            inner[key] = _plain(value)
    return nested


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def train(settings: Settings, *, on_event: Callable[[Event], None] = lambda _: None) -> TrainedRun:
    """Trains and tests one model in this process. The results equal those of the command with one worker; no MLflow.

    Resumes an unfinished run of the same settings and data, depending on settings.resume. on_event: called with every
    event of the training, see pnfrec_dist.training.events; an error that it raises ends the training and is raised
    here. Trainings in several threads run one after another; torch's random state is the caller's again at the end.

    Raises InputError for settings that cannot be trained in one process, a loss that is not finite, or data that are
    missing or damaged.
    """
    if not isinstance(settings, Settings):
        raise InputError(f"settings is {settings!r}; it must be the result of train_settings()")
    data = open_data(settings)
    plan = _one_worker(settings)
    run, outcome = choose_run(settings, data.manifest.digest), Outcome()
    checked_plan(with_kept_precision(settings, run.directory), data, plan)

    def report(event: Event) -> None:
        outcome.see(event)
        try:
            on_event(event)
        except Exception as error:
            raise _CallersError("on_event raised an error") from error

    try:
        gpus = [torch.cuda.current_device()] if plan.use_gpu else []
        with _TRAINING, torch.random.fork_rng(gpus), taken_up(run, settings, data):
            run_here(settings, plan, data, run.directory, Hooks(report, threading.Event().is_set))
            run.ended = "finished" if outcome.test is not None else "diverged" if outcome.diverged is not None else ""
            run.write()
    except _CallersError as error:
        assert error.__cause__ is not None
        raise error.__cause__ from None
    if outcome.refused is not None:
        raise InputError(outcome.refused.text)
    if outcome.diverged is not None:
        raise InputError(say_diverged(outcome.diverged, settings))
    test = outcome.test
    assert test is not None
    return TrainedRun(run.directory, settings, outcome.in_order, test.best_epoch, test.metrics, test.floors)


def _one_worker(settings: Settings) -> WorkerPlan:
    """One worker, in this process. Raises InputError if the settings ask for more."""
    asked = settings.num_gpus or settings.num_workers or 1
    if asked > 1 or settings.ray_address:
        what = f"--ray-address {settings.ray_address}" if settings.ray_address else f"{asked} workers"
        raise InputError(f"the settings ask for {what}, and train() is one process; use pnfrec train")
    here = this_machine(1)
    use_gpu = settings.num_gpus == 1 or (settings.num_gpus is None and settings.num_workers is None and here.gpus >= 1)
    wanted = WorkerOptions(num_workers=None if use_gpu else 1, num_gpus=int(use_gpu))
    return replace(plan_workers(wanted, [here]), in_this_process=True)


def load_model(run: TrainedRun | Path | str, data_dir: str = "") -> Model:
    """Loads a trained model from a run, a run's directory, a checkpoint, or a name in MLflow (pnfrec recommend --run).

    data_dir: directory of prepared data sets; a checkpoint needs the data set on which it was trained, for the catalog
    (default: that of the run, else data/prepared). Raises InputError that names what is missing, damaged or does not
    match.
    """
    own = run.settings.data_dir if isinstance(run, TrainedRun) else "data/prepared"
    reference = run.directory if isinstance(run, TrainedRun) else run
    return Model(open_trained(str(reference), data_dir or own))


def evaluate(
    model: Model, data: PreparedData, split: Literal["validation", "test"] = "test", gamma: float | None = None
) -> dict[str, float]:
    """Metrics of a model on held-out users, as `pnfrec evaluate` computes them: {"ndcg_p_at_10": ..., ...}.

    Those of many points begin with points_ (docs/evaluation.md).

    gamma: weight of the score as next dislike, which is subtracted (None: evaluation.gamma of the training).

    Raises InputError for data on which the model was not trained, for gamma > 0 if the model predicts no dislikes, and
    for arguments of another kind.
    """
    if not isinstance(model, Model):
        raise InputError(f"model is {model!r}; it must be the result of load_model()")
    if not isinstance(data, PreparedData):
        raise InputError(f"data is {data!r}; it must be the result of open_prepared()")
    if split not in ("validation", "test"):
        raise InputError(f"split is {split!r}; it must be 'validation' or 'test'")
    used = model.exported.gamma(gamma)
    require_gamma(model.exported.model, used)
    if model.exported.data_digest != data.manifest.digest:
        raise InputError(f"the model was trained on another state of the data than {data.directory}")
    found = Split(model.exported, data.require_whole(split), split)
    return found.evaluated(used).metrics | found.of_points(used)
