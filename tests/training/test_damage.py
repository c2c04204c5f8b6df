"""Flipped bits, cut files and changed shards are refused before training starts; the error names the file."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import TRAINING_PARTS, PreparedData, open_prepared
from pnfrec_dist.data.schema import QUARANTINE, USERS
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.training.checkpoint import read_state
from pnfrec_dist.training.checkpoint_manager import checkpoints
from pnfrec_dist.training.loop import Hooks, TrainLoop

Soak = Callable[[str, str, str], None]
SETTINGS = Settings(
    epochs=1,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
)


def opened_whole(directory: Path) -> PreparedData:
    """Opens a data set as commands do."""
    return open_prepared(directory).require_whole(*TRAINING_PARTS, USERS, QUARANTINE)


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize(("flips", "cuts"), [(60, 20), pytest.param(300, 100, marks=pytest.mark.soak)])
def test_flipped_bits_and_cut_ends_are_refused_by_name(
    prepared: Path, tmp_path: Path, flips: int, cuts: int, soak: Soak
) -> None:
    """In all files of a checkpoint and of a prepared data set, including its manifest and marker."""
    torch.set_num_threads(1)
    TrainLoop(SETTINGS, open_prepared(prepared), tmp_path / "run", World(), Hooks(lambda _: None, lambda: False)).run()
    checkpoint = checkpoints(tmp_path / "run")[0]
    rng, refused = random.Random(flips), 0
    openers: list[tuple[Path, Callable[[Path], Any]]] = [(checkpoint, read_state), (prepared, opened_whole)]
    for trial in range(flips + cuts):
        directory, opened = openers[trial % 2]
        file = rng.choice([path for path in files_below(directory) if path.stat().st_size])
        content = file.read_bytes()
        if trial < flips:
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            damaged = content[: rng.randrange(len(content))]
        file.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            opened(directory)
        assert str(directory) in str(caught.value) and "\n" not in str(caught.value)
        refused += 1
        file.write_bytes(content)
        opened(directory)
    soak(f"{flips} bit flips, {cuts} cut ends", f"{refused}/{flips + cuts} refused by name", f"{flips + cuts}")


def rewritten(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


TAMPERING: dict[str, Callable[[Path, Path], Any]] = {
    "deleted": lambda data, _: (data / "train/part-00001.parquet").unlink(),
    "added": lambda data, _: shutil.copy(data / "train/part-00000.parquet", data / "train/part-00002.parquet"),
    "duplicated": lambda data, _: shutil.copy(data / "train/part-00000.parquet", data / "train/part-00001.parquet"),
    "swapped with its neighbour": lambda data, _: (
        (data / "train/part-00000.parquet").rename(data / "t"),
        (data / "train/part-00001.parquet").rename(data / "train/part-00000.parquet"),
        (data / "t").rename(data / "train/part-00001.parquet"),
    ),
    "from another build": lambda data, other: shutil.copy(
        other / "train/part-00000.parquet", data / "train/part-00000.parquet"
    ),
    "another schema": lambda data, _: rewritten(
        data / "train/part-00000.parquet", lambda t: t.rename_columns([*t.column_names[:-1], "others"])
    ),
    "fewer rows": lambda data, _: rewritten(data / "test/part-00000.parquet", lambda t: t.slice(1)),
    "rows in another order": lambda data, _: rewritten(
        data / "validation/part-00000.parquet", lambda t: t.take(list(range(len(t)))[::-1])
    ),
    "another catalog": lambda data, other: shutil.copy(other / "items.parquet", data / "items.parquet"),
    "another manifest": lambda data, other: shutil.copy(other / "manifest.json", data / "manifest.json"),
    "no marker": lambda data, _: (data / "_SUCCESS").unlink(),
}


@pytest.mark.parametrize("builds", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_tampered_shards_are_refused(
    prepared_writer: Callable[..., Path], tmp_path: Path, builds: int, soak: Soak
) -> None:
    refused = 0
    for build in range(builds):
        for kind, tamper in TAMPERING.items():
            directory = tmp_path / f"{build}-{kind}"
            data = prepared_writer(directory / "tiny", seed=build)
            tamper(data, prepared_writer(directory / "other" / "tiny", items=13, seed=build + 5))
            with pytest.raises(InputError) as caught:
                opened_whole(data)
            assert str(data) in str(caught.value) and "\n" not in str(caught.value), kind
            refused += 1
    kinds = len(TAMPERING)
    soak(f"{kinds} kinds of tampering, {builds} data sets", f"{refused}/{kinds * builds} refused", f"{kinds * builds}")


def test_a_manifest_that_fits_a_tampered_shard_is_told_from_the_marker(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["counts"]["train"]["rows"] += 1
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json"):
        open_prepared(prepared)
