"""What a sweep is asked for, and its stages with that over conf/tune/."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from tune.space import Point, Stage, load_stage, require_space, with_point

FOUND_BY = "# Found by: "
"""Opens the line of best.yaml that names the command."""


@dataclass(frozen=True)
class Options:
    """What is to be searched, and with what."""

    dataset: str
    stages: tuple[str, ...]
    directory: Path
    search: str | None
    scheduler: str | None
    num_samples: int | None
    time_budget: float | None
    """seconds"""
    workers_per_trial: int
    gpus_per_trial: int | None
    max_concurrent: int | None
    retry_failed: bool
    write_config: str | None
    """a name in conf/train/"""
    dry_run: bool
    flags: tuple[str, ...]
    """of the training command, for all trials"""
    command: str


def planned_stages(options: Options) -> list[Stage]:
    """The stages with the command's own choices over those of conf/tune/. Raises InputError."""
    stages = []
    for name in options.stages:
        own = {key: getattr(options, key) for key in ("search", "scheduler", "num_samples")}
        stage = load_stage(name, **{key: value for key, value in own.items() if value is not None})
        require_space(stage, base_settings(options, stage, {}))
        stages.append(stage)
    if options.num_samples and all(stage.search == "grid" for stage in stages):
        way_out = "leave it out, or say --search random or optuna as well"
        raise InputError(f"--num-samples is {options.num_samples}, but a grid has all of its points; {way_out}")
    _require_not_searched(options.flags, stages)
    return stages


def _require_not_searched(flags: Sequence[str], stages: Sequence[Stage]) -> None:
    """Raises InputError about a flag for what a stage searches: its trials would have other values."""
    names = {flag.partition("=")[0].removeprefix("--").replace("-", "_"): flag for flag in flags}
    for stage in stages:
        for parameter in stage.parameters:
            if parameter.name in names:
                flag = names[parameter.name].partition("=")[0]
                raise InputError(f"{flag} is what stage {stage.name} searches; leave it out, or write another stage")


def base_settings(options: Options, stage: Stage, found: Point) -> Settings:
    """What the trials of a stage share: found: what earlier stages chose."""
    flags = ["--dataset", options.dataset, "--model", stage.model, "--output-dir", str(options.directory / stage.name)]
    settings = parse_train_settings([*flags, *options.flags], any_model=True)
    if options.gpus_per_trial:
        settings = dataclasses.replace(settings, num_gpus=options.gpus_per_trial)
    else:
        settings = dataclasses.replace(settings, num_workers=options.workers_per_trial)
    return with_point(settings, found, f"what was found before {stage.name}")
