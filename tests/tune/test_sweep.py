"""Which directories a sweep and its stages continue in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.training.run_directory import Run
from tune.options import parse, planned_stages
from tune.space import with_point
from tune.sweep import run_sweep, stage_run


def test_a_stage_starts_anew_where_earlier_stages_chose_otherwise(
    tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    """Trials are named only after what their stage searches: alpha 0.3 with another width is another trial."""
    data, directory = open_prepared(prepared_writer(tmp_path / "tiny")), tmp_path / "sweep" / "alpha"
    narrow, wide = (
        with_point(parse_train_settings([]), {"encoder.hidden_size": size, "optimizer.lr": 0.001}, "encoder")
        for size in (64, 256)
    )
    for settings, name in (
        (narrow, "alpha"),
        (narrow, "alpha"),
        (wide, "alpha-2"),
        (narrow, "alpha"),
        (wide, "alpha-2"),
    ):
        run = stage_run(directory, settings, data)
        assert run.directory.name == name
        run.write()
    elsewhere = dataclasses.replace(
        narrow, num_workers=7, ray_address="head:6379", data_dir="/elsewhere", max_failures=9
    )
    assert stage_run(directory, elsewhere, data).directory.name == "alpha"


def test_a_directory_that_no_sweep_can_have_is_refused(
    tmp_path: Path, prepared_writer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before Ray starts."""
    prepared_writer(tmp_path / "data/prepared/tiny")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()

    def refused(*flags: str) -> str:
        options = parse(["--dataset", "tiny", *flags])
        with pytest.raises(InputError) as caught:
            run_sweep(options, planned_stages(options))
        return str(caught.value)

    assert "cannot write to " in refused("--output-dir", "file")
    training = Run(tmp_path / "runs/mine", to_mapping(parse_train_settings([])), "digest")
    training.write()
    assert "runs/mine is the run of a training; choose another --name" in refused("--name", "mine")
    sweep = Run(tmp_path / "runs/other", {"sweeps": "tiny"}, "digest")
    sweep.write()
    assert "runs/other is a sweep on other data" in refused("--name", "other")
    dataclasses.replace(sweep, data_digest=open_prepared(tmp_path / "data/prepared/tiny").manifest.digest).write()
    assert "runs/other is a sweep that differs in settings.contrastive." in refused("--name", "other")
    with Run(tmp_path / "runs/busy", {}, "").locked():
        assert "runs/busy is being trained by another command" in refused("--name", "busy")
