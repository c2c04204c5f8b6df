"""The flags of a sweep, and its stages: conf/tune/ with the flags applied."""

import argparse
import dataclasses
import difflib
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import command, parse_train_settings
from pnfrec_dist.config.conf_files import conf_names
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from tune.space import SCHEDULERS, SEARCHES, Point, Stage, load_stage, require_space, with_point

PAPER = ("encoder", "alpha", "beta")
"""The stages of the paper's protocol."""
LEAST_SHARE = 0.01
"""of a GPU, for a trial"""
FOUND_BY = "# Found by: "
"""Start of the line in best.yaml that names the command."""


@dataclass(frozen=True)
class Options:
    """The parsed flags."""

    dataset: str
    stages: tuple[str, ...]
    directory: Path
    search: str | None
    scheduler: str | None
    num_samples: int | None
    time_budget: float | None
    """seconds"""
    workers_per_trial: int
    gpus_per_trial: float | None
    """below 1: a share of a GPU"""
    max_concurrent: int | None
    retry_failed: bool
    write_config: str | None
    """name of a file in conf/train/"""
    dry_run: bool
    flags: tuple[str, ...]
    """further flags, of the training command, for all trials"""
    command: str


def parse(args: Sequence[str]) -> Options:
    """Raises InputError."""
    parser = _parser()
    try:
        found, flags = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; see {command('tune')} --help") from error
    _require_flags(flags, [option for action in parser._actions for option in action.option_strings])
    for name, least in (("num_samples", 1), ("workers_per_trial", 1), ("max_concurrent", 1)):
        value = getattr(found, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be >= {least}")
    gpus = found.gpus_per_trial
    if gpus is not None and not (gpus == 0 or LEAST_SHARE <= gpus < 1 or (gpus >= 1 and gpus.is_integer())):
        way_out = f"it must be 0, a share of a GPU from {LEAST_SHARE:g} to 1, or a whole number of GPUs"
        raise InputError(f"--gpus-per-trial is {gpus:g}; {way_out}")
    stages = tuple(dict.fromkeys(found.stages))
    for flag, value in (("--dataset", found.dataset), ("--name", found.name), ("--write-config", found.write_config)):
        if value is not None and not re.fullmatch(r"\w[\w.-]{0,99}", value):
            raise InputError(f"{flag} is {value!r}; a name has at most 100 letters, digits, '.', '_' and '-'")
    name = found.name or "-".join(["tune", found.dataset, *(stages if stages != PAPER else ())])
    if found.write_config is not None:
        _require_new_config(found.write_config)
    return Options(
        dataset=found.dataset,
        stages=stages,
        directory=(found.output_dir / name).resolve(),
        search=found.search,
        scheduler=found.scheduler,
        num_samples=found.num_samples,
        time_budget=_seconds(found.time_budget),
        workers_per_trial=found.workers_per_trial,
        gpus_per_trial=found.gpus_per_trial,
        max_concurrent=found.max_concurrent,
        retry_failed=found.retry_failed,
        write_config=found.write_config,
        dry_run=found.dry_run,
        flags=tuple(flags),
        command=shlex.join(["python", "-m", "tune", *args]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command("tune"),
        allow_abbrev=False,
        exit_on_error=False,
        description="Searches training settings with Ray Tune on validation users, stage by stage. Tests the winner "
        "once and writes best.yaml. Trials that ended are not run again, so the same command continues an interrupted "
        "sweep.",
        epilog=f"Any other flag is a flag of {command('train')} (--config best.yaml, --epochs 20, ...) and "
        "applies to all trials. Stages are files in conf/tune/: " + ", ".join(conf_names("tune")) + ".",
    )
    add = parser.add_argument
    add("--dataset", default="synthetic", help="name of a prepared data set (default: synthetic)")
    add(
        "--stages",
        nargs="+",
        default=list(PAPER),
        help="files of conf/tune/, searched one after another (default: the paper's: " + " ".join(PAPER) + ")",
    )
    add("--search", choices=SEARCHES, help="replaces the search of the stages")
    add("--scheduler", choices=SCHEDULERS, help="replaces the scheduler of the stages")
    add("--num-samples", type=int, help="number of trials of a random or optuna search")
    add("--time-budget", metavar="TIME", help="such as 90m or 8h; then running trials are stopped (default: none)")
    add("--workers-per-trial", type=int, default=1, help="CPU workers of each trial (default: 1)")
    add(
        "--gpus-per-trial",
        type=float,
        metavar="GPUS",
        help="GPUs of each trial, one worker each; below 1, such as 0.1: a share of one GPU; 0: CPU workers (default: "
        "the share with which as many trials run at a time as memory and CPUs allow; 0 without GPUs)",
    )
    add("--max-concurrent", type=int, help="maximum number of trials at a time (default: as many as fit)")
    add("--output-dir", type=Path, default=Path("runs"), help="default: runs")
    add(
        "--name", help="directory in --output-dir and name in MLflow (default: tune-<dataset>, and the stages if given)"
    )
    add("--write-config", metavar="NAME", help="write the best settings to conf/train/NAME.yaml as well")
    add("--retry-failed", action="store_true", help="run trials again that failed in an earlier command")
    add("--dry-run", action="store_true", help="check everything, show the plan, train nothing")
    return parser


def _require_flags(flags: Sequence[str], own: Sequence[str]) -> None:
    """Raises InputError for flags that neither this command nor its trainings accept."""
    names = [flag.partition("=")[0] for flag in flags]
    if "--model" in names:
        raise InputError("--model comes from the stage; choose stages with --stages")
    for name in ("--num-workers", "--min-workers", "--num-gpus"):
        if name in names:
            raise InputError(f"{name} is for a single training; use --workers-per-trial and --gpus-per-trial")
    if "--resume" in names:
        raise InputError(
            "--resume is for a single training; the same command continues its sweep, a new sweep needs another --name"
        )
    if flags and not flags[0].startswith("-"):
        raise InputError(f"{flags[0]!r} is not a flag; see {command('tune')} --help")
    for name in names:
        if name.startswith("--") and "." not in name and (close := difflib.get_close_matches(name, own, 1, 0.85)):
            raise InputError(f"unknown flag {name}; did you mean {close[0]}?")


def _require_new_config(name: str) -> None:
    """Raises InputError for the name of a file in conf/train/ that no sweep has written."""
    file = Path("conf/train") / f"{name}.yaml"
    if name.endswith(".yaml"):
        raise InputError(f"--write-config is {name!r}; leave out .yaml")
    is_own = file.is_file() and FOUND_BY in file.read_text(encoding="utf-8")
    if name in conf_names("train") and not is_own:
        raise InputError(f"--write-config is {name!r}, and conf/train/ already has this file; choose another name")


def _seconds(text: str | None) -> float | None:
    """ "90s", "15m", "1.5h" -> seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise InputError(f"--time-budget is {text!r}; give seconds, minutes or hours, such as 90s, 45m or 1.5h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def planned_stages(options: Options) -> list[Stage]:
    """The stages of conf/tune/ with the flags applied. Raises InputError."""
    stages = []
    for name in options.stages:
        own = {key: getattr(options, key) for key in ("search", "scheduler", "num_samples")}
        stage = load_stage(name, **{key: value for key, value in own.items() if value is not None})
        require_space(stage, base_settings(options, stage, {}))
        stages.append(stage)
    if options.num_samples and all(stage.search == "grid" for stage in stages):
        way_out = "leave it out, or add --search random or --search optuna"
        raise InputError(f"--num-samples is {options.num_samples}, but a grid runs all of its points; {way_out}")
    _require_not_searched(options.flags, stages)
    return stages


def _require_not_searched(flags: Sequence[str], stages: Sequence[Stage]) -> None:
    """Raises InputError for a flag of a setting that a stage searches: the trials would override it."""
    names = {flag.partition("=")[0].removeprefix("--").replace("-", "_"): flag for flag in flags}
    for stage in stages:
        for parameter in stage.parameters:
            if parameter.name in names:
                flag = names[parameter.name].partition("=")[0]
                raise InputError(f"stage {stage.name} searches {flag}; leave it out, or write another stage")


def base_settings(options: Options, stage: Stage, found: Point) -> Settings:
    """The settings that the trials of a stage share. found: what earlier stages chose."""
    flags = ["--dataset", options.dataset, "--model", stage.model, "--output-dir", str(options.directory / stage.name)]
    settings = parse_train_settings([*flags, *options.flags], any_model=True)
    if settings.final:
        raise InputError("--final is not a flag of this command, whose trials are all evaluated; use train")
    if options.gpus_per_trial:
        settings = dataclasses.replace(settings, num_gpus=math.ceil(options.gpus_per_trial))
    else:
        settings = dataclasses.replace(settings, num_workers=options.workers_per_trial)
    return with_point(settings, found, f"values found before stage {stage.name}")
