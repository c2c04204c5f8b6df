"""The plan of a reproduction: the trainings of the paper's experiments on one data set."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.conf_files import conf_content, conf_names
from pnfrec_dist.config.mappings import flatten
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.evaluation.baselines import BASELINES
from pnfrec_dist.experiments.reproduction_options import CURVES, Options
from pnfrec_dist.tracking.run_name import run_name


@dataclass(frozen=True)
class Training:
    """One training of the plan."""

    settings: Settings
    name: str
    weight: str = ""
    """the loss weight that a curve varies, or "" for a row of the table"""

    @property
    def value(self) -> float:
        """The value of the varied weight; nan without one."""
        return getattr(self.settings.loss, self.weight) if self.weight else math.nan


def planned(options: Options) -> list[Training]:
    """All trainings, in the order in which they run: the table seed by seed, then the curves seed by seed.

    Raises InputError.
    """
    dataset, directory, flags = options.dataset, options.directory, options.flags
    trainings = []
    rows = {model: _settings(dataset, model, directory, flags) for model in options.models}
    for seed in options.seeds:
        for settings in rows.values():
            seeded = dataclasses.replace(settings, seed=seed)
            trainings.append(Training(seeded, run_name(seeded)))
    for weight, values in options.curves.items():
        settings = _settings(dataset, CURVES[weight], directory, flags)
        for seed in options.seeds:
            for value in values:
                loss = dataclasses.replace(settings.loss, **{weight: value})
                seeded = dataclasses.replace(settings, seed=seed, loss=loss)
                trainings.append(Training(seeded, run_name(seeded, f"loss.{weight}"), weight))
    return trainings


def _own(model: str) -> list[str]:
    """Names of the settings that define the model. How it is evaluated is not among them: flags change it for all."""
    return [name for name in flatten(conf_content("model", model)) if not name.startswith("evaluation.")]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _settings(dataset: str, model: str, directory: Path, flags: Sequence[str]) -> Settings:
    if model in BASELINES:
        raise InputError(f"--models has {model!r}, which is not trained and always reported; leave it out")
    if "," in model:
        raise InputError(f"--models has {model!r}; separate names by spaces, not commas")
    if model not in conf_names("model"):
        raise InputError(f"--models has {model!r}; {nearest(model, conf_names('model'))}")
    if {"--model", "--seed"} & {flag.partition("=")[0] for flag in flags}:
        raise InputError("--model and --seed are not flags of this command; use --models and --seeds")
    for flag in sorted({flag.partition("=")[0] for flag in flags} & {_flag(name) for name in _own(model)}):
        raise InputError(
            f"{flag} defines {model} ({model}.yaml in conf/model/); vary a weight with --alphas or --betas, "
            "or write your own model file"
        )
    settings = parse_train_settings(["--dataset", dataset, "--model", model, "--output-dir", str(directory), *flags])
    if settings.final:
        raise InputError("--final is not a flag of this command, whose trainings are all evaluated; use train")
    if settings.resume != Settings.resume:
        raise InputError(f"--resume is {settings.resume!r}; this command always resumes; use another --name instead")
    return settings
