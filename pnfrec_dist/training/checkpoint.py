"""Checkpoints: a directory that is whole or absent, and whose damage is noticed before it is used.

model.safetensors       the encoders' parameters by name
optimizer.safetensors   Adam's state: "<exp_avg | exp_avg_sq | step>.<parameter name>"; of the item table only the step
items-R-of-S.safetensors   rank R's rows of the item table: weight, exp_avg, exp_avg_sq
state.json              TrainState, settings, digest of the data, the rows' bounds, format version
checksums.json          sha256 of the files above
COMMITTED               sha256 of checksums.json, written last

Any number of ranks, with the table sharded or not, opens what any other number wrote.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.storage import sha256_of, sync_to_disk

FORMAT_VERSION = 2
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CHECKSUMS, COMMITTED = "checksums.json", "COMMITTED"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(directory: Path, model: PNFRec, optimizer: Optimizer, state: dict[str, Any], world: World) -> None:
    """Writes a checkpoint beside `directory` and renames it into place after fsync; an older one there is replaced.

    Every rank calls it; rank 0 writes, and with a sharded item table every rank its rows.
    """
    draft = directory.with_name(f".{directory.name}.writing")
    if world.is_main:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    world.barrier()
    checksums = {}
    table = model.item_table
    if world.is_main or table.is_sharded:
        checksums |= _write(draft / _items_file(table.shards.rank, table.shards.size), _table_tensors(table, optimizer))
    if world.is_main:
        content = {"format_version": FORMAT_VERSION, "item_rows": table.bounds, **state}
        checksums |= _write(draft / MODEL, {name: _plain(p) for name, p in model.encoders.named_parameters()})
        checksums |= _write(draft / OPTIMIZER, _optimizer_tensors(model, optimizer))
        (draft / STATE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        checksums |= _settled(draft / STATE)
    every = [entry for written in world.gather(checksums) for entry in written.items()]
    if world.is_main:
        _commit(draft, directory, dict(sorted(every)))
    world.barrier()


def _commit(draft: Path, directory: Path, checksums: dict[str, str]) -> None:
    (draft / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
    sync_to_disk(draft / CHECKSUMS)
    (draft / COMMITTED).write_text(sha256_of(draft / CHECKSUMS) + "\n", encoding="ascii")
    sync_to_disk(draft / COMMITTED)
    sync_to_disk(draft)
    if directory.exists():
        shutil.rmtree(directory)
    draft.rename(directory)
    sync_to_disk(directory.parent)


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a whole checkpoint, after every file was compared with its sha256.

    Raises InputError naming the file that is missing or damaged.
    """
    if not directory.is_dir():
        raise InputError(f"no checkpoint at {directory}; name a directory below runs/<run>/checkpoints")
    marker = directory / COMMITTED
    if not marker.is_file() or not (directory / CHECKSUMS).is_file():
        raise InputError(
            f"{directory} is not a whole checkpoint: it has no {COMMITTED} or no {CHECKSUMS}; use another one"
        )
    checksums_bytes = (directory / CHECKSUMS).read_bytes()
    if marker.read_bytes().strip() != hashlib.sha256(checksums_bytes).hexdigest().encode():
        raise InputError(f"{directory / CHECKSUMS} is damaged (sha256 differs); use another checkpoint")
    for name, checksum in json.loads(checksums_bytes).items():
        file = directory / name
        if not file.is_file() or sha256_of(file) != checksum:
            raise InputError(f"{file} is missing or damaged (sha256 differs); use another checkpoint")
    state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    if state["format_version"] != FORMAT_VERSION:
        raise InputError(f"{directory} has format {state['format_version']}, this program reads {FORMAT_VERSION}")
    return state


def load_model(directory: Path, model: PNFRec) -> None:
    """Puts a checkpoint's parameters into `model`. Call read_state first: it checks the files."""
    model.encoders.load_state_dict(_load(directory / MODEL))
    with torch.no_grad():
        model.item_table.weight.copy_(_table_rows(directory, model.item_table, "weight"))


def load_optimizer(directory: Path, model: PNFRec, optimizer: Optimizer) -> None:
    """Puts a checkpoint's optimizer state into `optimizer`, which holds the model's parameters."""
    stored = _load(directory / OPTIMIZER)
    for name, parameter in model.named_parameters():
        if f"step.{name}" not in stored:
            continue
        moments = {"step": stored[f"step.{name}"]}
        for key in MOMENTS:
            of_table = parameter is model.item_table.weight
            moment = _table_rows(directory, model.item_table, key) if of_table else stored[f"{key}.{name}"]
            moments[key] = moment.to(parameter.device)
        optimizer.state[parameter] = moments


def _table_rows(directory: Path, table: ItemTable, key: str) -> Tensor:
    """This rank's rows of one tensor of the item table, from whatever shards hold them."""
    bounds = json.loads((directory / STATE).read_text(encoding="utf-8"))["item_rows"]
    if bounds[-1] != table.bounds[-1]:
        raise InputError(f"{directory} has {bounds[-1] - 1} items, the data set {table.num_items}; use another one")
    parts = []
    for rank, (first, end) in enumerate(pairwise(bounds)):
        low, high = max(first, table.first_row), min(end, table.end_row)
        if low < high:
            with _opened(directory / _items_file(rank, len(bounds) - 1)) as file:
                parts.append(file.get_slice(key)[low - first : high - first])
    return torch.cat([table.weight.detach().cpu()[:0], *parts]) if len(parts) != 1 else parts[0]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}); use another checkpoint") from error


def _load(file: Path) -> dict[str, Tensor]:
    with _opened(file) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)


def _write(file: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    save_file(tensors, file)
    return _settled(file)


def _settled(file: Path) -> dict[str, str]:
    """{name: sha256} of a file, once it is on the disk."""
    sync_to_disk(file)
    return {file.name: sha256_of(file)}


def _items_file(rank: int, size: int) -> str:
    return f"items-{rank:05d}-of-{size:05d}.safetensors"


def _table_tensors(table: ItemTable, optimizer: Optimizer) -> dict[str, Tensor]:
    moments = optimizer.state.get(table.weight, {})
    return {"weight": _plain(table.weight), **{key: _plain(moments[key]) for key in MOMENTS if key in moments}}


def _optimizer_tensors(model: PNFRec, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": _plain(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if key == "step" or parameter is not model.item_table.weight
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cpu")).contiguous()
