"""Which directories a sweep and its stages continue in."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.cluster import session
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.training import memory_plan
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


@pytest.mark.parametrize(
    ("gib", "gpus", "flags", "said"),
    [
        (80, 1, [], "16 trials at a time, each with 1 worker, 0.0625 GPU, 1 CPU"),
        (
            80,
            1,
            ["--num-samples", "4", "--search", "random"],
            "4 trials at a time, each with 1 worker, 0.25 GPU, 4 CPUs",
        ),
        (80, 1, ["--max-concurrent", "3"], "3 trials at a time, each with 1 worker, 0.3333 GPU, 5 CPUs"),
        (80, 1, ["--gpus-per-trial", "1"], "one trial at a time, each with 1 worker, 1 GPU"),
        (80, 2, ["--gpus-per-trial", "0"], "16 trials at a time, each with 1 worker, 1 CPU"),
        (5, 2, [], "6 trials at a time, each with 1 worker, 0.3333 GPU, 2 CPUs"),
        (2, 2, [], "2 trials at a time, each with 1 worker, 1 GPU"),
    ],
)
def test_the_memory_plan_chooses_the_share_of_a_gpu(
    made_machine: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
    gib: int,
    gpus: int,
    flags: list[str],
    said: str,
) -> None:
    made_machine(gpus, gib)
    options = parse(["--dataset", "tiny", "--dry-run", *flags])
    assert run_sweep(options, planned_stages(options)) == 0
    assert f"trials: {said}\n" in capsys.readouterr().out


def test_a_share_that_is_too_small_is_refused_with_one_that_is_not(made_machine: Callable[[int, int], None]) -> None:
    made_machine(1, 8)
    options = parse(["--dataset", "tiny", "--dry-run", "--gpus-per-trial", "0.1"])
    with pytest.raises(InputError, match=r"0.1 of a GPU has 819 MiB; use --gpus-per-trial (0\.\d+)$") as caught:
        run_sweep(options, planned_stages(options))
    options = parse(["--dataset", "tiny", "--dry-run", "--gpus-per-trial", str(caught.value).split()[-1]])
    assert run_sweep(options, planned_stages(options)) == 0


@pytest.fixture
def made_machine(
    tmp_path: Path, prepared_writer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int], None]:
    """Call it with a number of GPUs and the GiB of each: 16 CPUs, and a data set in the working directory."""
    prepared_writer(tmp_path / "data/prepared/tiny")
    monkeypatch.chdir(tmp_path)

    def made(gpus: int, gib: int) -> None:
        monkeypatch.setattr(session, "_has_ray", lambda: False)  # other tests of this process may share a Ray
        monkeypatch.setattr(session, "_stop_ray", lambda: None)
        monkeypatch.setattr(memory_plan, "LIBRARIES", 600 * 2**20)  # whether or not torch supports GPUs here
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))

    return made
