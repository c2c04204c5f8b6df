"""The flags of a reproduction."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import command
from pnfrec_dist.errors import InputError

MAX_SEEDS = 100
MODELS = ("pnfrec", "pnfrec_pn", "pnfrec_pc", "sasrec_p", "sasrec_c", "sasrec")
"""The rows of the paper's Table 2."""


CURVES = {"alpha": "pnfrec_pn", "beta": "pnfrec"}
"""Loss weight that a curve varies -> the model of the curve (alpha: Figure 2)."""


@dataclass(frozen=True)
class Options:
    """The parsed flags."""

    dataset: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    curves: dict[str, tuple[float, ...]]
    """loss weight -> its values"""
    directory: Path
    report_only: bool
    at_a_time: int | None
    """number of trainings at a time; None: automatic"""
    flags: tuple[str, ...]
    """further flags of the training command"""


def parse(args: Sequence[str]) -> Options:
    """Raises InputError."""
    try:
        found, flags = _parser().parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    if not found.seeds.isdecimal() or not 1 <= int(found.seeds) <= MAX_SEEDS:
        raise InputError(f"--seeds is {found.seeds!r}; it must be a number of seeds, from 1 to {MAX_SEEDS}")
    if found.at_a_time is not None and found.at_a_time < 1:
        raise InputError(f"--at-a-time is {found.at_a_time}; it must be >= 1")
    name = f"reproduce-{found.dataset}" if found.name is None else found.name
    for flag, value in (("--dataset", found.dataset), ("--name", name)):
        if not re.fullmatch(r"\w[\w.-]*", value):
            raise InputError(f"{flag} is {value!r}; a name may only have letters, digits, '.', '_' and '-'")
    curves = {weight: _values(weight, getattr(found, f"{weight}s")) for weight in CURVES}
    return Options(
        found.dataset,
        tuple(dict.fromkeys(found.models)),
        tuple(range(1, int(found.seeds) + 1)),
        {weight: values for weight, values in curves.items() if values},
        (found.output_dir / name).resolve(),
        found.report_only,
        found.at_a_time,
        tuple(flags),
    )


def _values(weight: str, given: list[str] | None) -> tuple[float, ...]:
    if given == ["grid"]:
        return tuple(round(0.05 * step, 2) for step in range(21))
    try:
        return tuple(sorted({float(value) for value in given or []}))
    except ValueError as error:
        raise InputError(f"--{weight}s is {' '.join(given or [])!r}; it must be numbers, or grid") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command("reproduce"),
        allow_abbrev=False,
        exit_on_error=False,
        description=f"Trains models with several seeds, as {command('train')} does, and compares them in a report: the "
        "paper's Table 2 and Figure 2, or other models, with the SD over seeds and intervals over test users. "
        "Trainings that have a result are not run again, so the same command continues after an interruption, and more "
        "seeds, models or values can be added.",
        epilog=f"Any other flag is a flag of {command('train')} (--epochs 20, --encoder.hidden-size 128, ...) "
        "and applies to all trainings; --dry-run lists them.",
    )
    parser.add_argument("--dataset", default="synthetic", help="name of a prepared data set (default: synthetic)")
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help=f"files of conf/model/ (default: {' '.join(MODELS)})"
    )
    parser.add_argument("--seeds", default="5", help="number of seeds: 1, 2, ... (default: 5, as in the paper)")
    for weight, model in CURVES.items():
        parser.add_argument(
            f"--{weight}s",
            nargs="*",
            metavar="VALUE",
            help=f"values of {weight} for a curve of {model}; grid: 0 to 1 in "
            "steps of 0.05, as in the paper (default: no curve)",
        )
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--name", help="directory in --output-dir and name in MLflow (default: reproduce-<dataset>)")
    parser.add_argument(
        "--at-a-time",
        type=int,
        metavar="NUMBER",
        help="trainings at a time; several have one worker each (default: on GPUs, as many as memory and CPUs allow; "
        "on CPUs 1)",
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing, report the existing results")
    return parser
