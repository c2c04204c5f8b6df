"""What the driver prints."""

import shlex
from dataclasses import replace

import pytest
import ray

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.cluster.trainer import ray_cluster
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import RunError
from pnfrec_dist.experiments.tracked_training import _same_run


def test_the_line_that_goes_on_is_read_as_the_same_settings() -> None:
    flags = "--checkpoint.no-background --train.compile --epochs 7 --evaluation.cutoffs 10 20 --experiment 'it is'"
    settings = parse_train_settings(shlex.split(flags))
    assert not settings.checkpoint.background and settings.train.compile
    assert parse_train_settings(shlex.split(_same_run(settings))) == settings
    assert parse_train_settings(shlex.split(_same_run(replace(settings, resume="never")))) == settings


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with too much to do: Ray raises a plain Exception of several lines."""

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis can happen when ...")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            RunError, match=r"^Ray did not start on this machine: The current node timed out during startup\. "
        ),
        ray_cluster(Settings()),
    ):
        pass
