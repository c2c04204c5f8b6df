"""What a sweep is asked for: its flags, and its stages with those over conf/tune/."""

import argparse
import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.conf_files import conf_names
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from tune.space import SCHEDULERS, SEARCHES, Point, Stage, load_stage, require_space, with_point

PAPER = ("encoder", "alpha", "beta")
"""The paper's protocol."""
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


def parse(args: Sequence[str]) -> Options:
    """Raises InputError."""
    parser = _parser()
    try:
        found, flags = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; see python -m tune --help") from error
    _require_flags(flags, [option for action in parser._actions for option in action.option_strings])
    for name, least in (("num_samples", 1), ("workers_per_trial", 1), ("max_concurrent", 1), ("gpus_per_trial", 0)):
        value = getattr(found, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be >= {least}")
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
        prog="python -m tune",
        allow_abbrev=False,
        exit_on_error=False,
        description="Searches training settings with Ray Tune on validation users, stage by stage, tests the winner "
        "once, and writes best.yaml. What ended is not run again, so the same command goes on after an interruption.",
        epilog="Any further flag is one of python -m pnfrec_dist.train (--config best.yaml, --epochs 20, ...) and "
        "holds for all trials. Stages are files in conf/tune/: " + ", ".join(conf_names("tune")) + ".",
    )
    add = parser.add_argument
    add("--dataset", default="synthetic", help="name of a prepared data set (default: synthetic)")
    add(
        "--stages",
        nargs="+",
        default=list(PAPER),
        help="of conf/tune/, one after the other (default: the paper's, " + " ".join(PAPER) + ")",
    )
    add("--search", choices=SEARCHES, help="instead of the stage's own")
    add("--scheduler", choices=SCHEDULERS, help="instead of the stage's own")
    add("--num-samples", type=int, help="trials of a random or optuna search")
    add("--time-budget", metavar="TIME", help="such as 90m or 8h; what runs then is stopped (default: none)")
    add("--workers-per-trial", type=int, default=1, help="CPU workers (default: 1)")
    add("--gpus-per-trial", type=int, help="workers with a GPU each (default: 1 where there are GPUs, else 0)")
    add("--max-concurrent", type=int, help="trials at a time (default: as many as the cluster holds)")
    add("--output-dir", type=Path, default=Path("runs"), help="default: runs")
    add(
        "--name", help="directory in --output-dir and name in MLflow (default: tune-<dataset>, and the stages if given)"
    )
    add("--write-config", metavar="NAME", help="write the best settings to conf/train/NAME.yaml as well")
    add("--retry-failed", action="store_true", help="run trials again that failed under an earlier command")
    add("--dry-run", action="store_true", help="check everything, show the plan, train nothing")
    return parser


def _require_flags(flags: Sequence[str], own: Sequence[str]) -> None:
    """Raises InputError about flags that are neither this command's nor the training's to take."""
    names = [flag.partition("=")[0] for flag in flags]
    if {"--model", "--output-dir", "--num-workers", "--min-workers", "--num-gpus"} & set(names):
        raise InputError("--model is the stage's; workers are set by --workers-per-trial and --gpus-per-trial")
    if "--resume" in names:
        raise InputError(
            "--resume is for a single training: the same sweep goes on by itself, another has another --name"
        )
    if flags and not flags[0].startswith("-"):
        raise InputError(f"{flags[0]!r} stands where a flag is expected; see python -m tune --help")
    for name in names:
        if name.startswith("--") and "." not in name and (close := difflib.get_close_matches(name, own, 1, 0.85)):
            raise InputError(f"unknown flag {name}; did you mean {close[0]}?")


def _require_new_config(name: str) -> None:
    """Raises InputError for a name in conf/train/ whose file no sweep has written."""
    file = Path("conf/train") / f"{name}.yaml"
    if name.endswith(".yaml"):
        raise InputError(f"--write-config is {name!r}; leave .yaml out")
    is_own = file.is_file() and FOUND_BY in file.read_text(encoding="utf-8")
    if name in conf_names("train") and not is_own:
        raise InputError(f"--write-config is {name!r}, and conf/train/ has such a file already; say another name")


def _seconds(text: str | None) -> float | None:
    """ "90s", "15m", "1.5h" -> seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found or not float(found[1]):
        raise InputError(f"--time-budget is {text!r}; say seconds, minutes or hours, such as 45m or 1.5h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


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
