"""The command that continues a training is read as the same settings."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.experiments.continuing_command import continuing_command

FLAGS = "--checkpoint.no-background --train.compile --epochs 7 --evaluation.cutoffs 10 20 --experiment 'it is'"


@pytest.mark.parametrize("resume", ["auto", "never", "runs/another"])
@pytest.mark.parametrize("flags", ["", "--model sasrec_p --dataset ml1m", FLAGS])
def test_it_has_the_settings_of_the_training_and_resumes_its_run(flags: str, resume: str) -> None:
    settings = parse_train_settings(shlex.split(flags))
    program, *line = shlex.split(continuing_command(replace(settings, resume=resume), Path("runs/of a user")))
    assert [program, *line[:2]] == ["python", "-m", "pnfrec_dist.train"]
    assert parse_train_settings(line[2:]) == replace(settings, resume="runs/of a user")


def test_what_is_the_default_is_left_out() -> None:
    line = continuing_command(parse_train_settings(["--epochs", "7"]), Path("runs/a"))
    assert line == (
        "python -m pnfrec_dist.train --dataset synthetic --model pnfrec_plus --config synthetic "
        "--epochs 7 --resume runs/a"
    )
