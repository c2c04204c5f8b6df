"""Which directory a stage goes on in."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.data.prepared import open_prepared
from tune.space import with_point
from tune.sweep import stage_run


def test_a_stage_starts_anew_where_earlier_stages_chose_otherwise(
    tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    """Its trials are named after what it searches: alpha 0.3 beside another width is another trial."""
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
    elsewhere = dataclasses.replace(narrow, num_workers=7, ray_address="head:6379", data_dir="/elsewhere")
    assert stage_run(directory, elsewhere, data).directory.name == "alpha"
