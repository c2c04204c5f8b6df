"""What the driver prints."""

import shlex
from dataclasses import replace

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.experiments.tracked_training import _same_run


def test_the_line_that_goes_on_is_read_as_the_same_settings() -> None:
    flags = "--checkpoint.no-background --train.compile --epochs 7 --evaluation.cutoffs 10 20 --experiment 'it is'"
    settings = parse_train_settings(shlex.split(flags))
    assert not settings.checkpoint.background and settings.train.compile
    assert parse_train_settings(shlex.split(_same_run(settings))) == settings
    assert parse_train_settings(shlex.split(_same_run(replace(settings, resume="never")))) == settings
