"""Checkpoints: directories that are complete or absent, and are checked for damage before use.

model.safetensors       the encoders' parameters by name
optimizer.safetensors   Adam's state: "<exp_avg | exp_avg_sq | step>.<parameter name>"; of the item table only the step
items-R-of-S.safetensors   rank R's rows of the item table: weight, exp_avg, exp_avg_sq
state.json              TrainState, epochs' metrics, settings, digest of the data, the rows' bounds, format version
checksums.json          sha256 of the files above
COMMITTED               sha256 of checksums.json, written last

Any number of ranks, with the table sharded or not, can open the checkpoint of any other number. Each rank writes its
part into a draft next to the checkpoints, and rank 0 moves the draft to a checkpoint (checkpoint_manager.py).
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import move_in, write_json, write_text
from pnfrec_dist.files.locations import sha256_of, sync_to_disk
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.model.score_weights import ScoreWeights

FORMAT_VERSION, READABLE = 5, (4, 5)
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CHECKSUMS, COMMITTED = "checksums.json", "COMMITTED"
WEIGHTS = "score_weights"
MOMENTS = ("exp_avg", "exp_avg_sq")

Files = dict[str, dict[str, Tensor]]
"""File name -> tensors by name."""


def own_tensors(model: PNFRec, optimizer: Optimizer, world: World) -> Files:
    """The tensors that this rank writes, not copied: its rows of a sharded item table; rank 0 also all others."""
    table, files = model.item_table, {}
    if world.is_main or table.is_sharded:
        files[items_file(table.shards.rank, table.shards.size)] = _table_tensors(table, optimizer)
    if world.is_main:
        files[MODEL] = {name: p.detach() for name, p in model.encoders.named_parameters()}
        files[OPTIMIZER] = _optimizer_tensors(model, optimizer)
    return files


def copied(files: Files) -> Files:
    """Copies in CPU memory, which training does not change."""
    return {
        name: {key: tensor.to(torch.device("cpu"), copy=True) for key, tensor in tensors.items()}
        for name, tensors in files.items()
    }


def write_part(draft: Path, rank: int, files: Files, state: dict[str, Any] | None) -> None:
    """Writes a rank's files, and state.json if given, into `draft`; last a note with their checksums."""
    draft.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for name, tensors in files.items():
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, draft / name)
        sync_to_disk(draft / name)
        checksums[name] = sha256_of(draft / name)
    if state is not None:
        write_json(draft / STATE, {"format_version": FORMAT_VERSION, **state}, indent=2, sort_keys=True)
        checksums[STATE] = sha256_of(draft / STATE)
    write_json(_part_note(draft, rank), checksums)


def parts_written(draft: Path, ranks: int) -> bool:
    return all(_part_note(draft, rank).is_file() for rank in range(ranks))


def commit(draft: Path, directory: Path, ranks: int) -> None:
    """Turns `draft`, into which all ranks have written their parts, into the checkpoint `directory`.

    If a complete checkpoint is already there, it stays: it has the same step of the same run.
    """
    notes = [_part_note(draft, rank) for rank in range(ranks)]
    checksums = {name: sha for note in notes for name, sha in json.loads(note.read_text(encoding="utf-8")).items()}
    for note in notes:
        note.unlink()
    write_json(draft / CHECKSUMS, checksums, indent=2, sort_keys=True)
    write_text(draft / COMMITTED, sha256_of(draft / CHECKSUMS) + "\n")
    with contextlib.suppress(InputError):
        read_state(directory)
        shutil.rmtree(draft)
        return
    move_in(draft, directory)


def _part_note(draft: Path, rank: int) -> Path:
    return draft / f"part-{rank:05d}.json"


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a complete checkpoint, after comparing every file with its sha256.

    Raises InputError that names a missing or damaged file.
    """
    if not directory.is_dir():
        raise InputError(f"there is no checkpoint {directory}; name a directory below runs/<run>/checkpoints")
    marker = directory / COMMITTED
    if not marker.is_file() or not (directory / CHECKSUMS).is_file():
        raise InputError(
            f"{directory} is not a complete checkpoint: it has no {COMMITTED} or no {CHECKSUMS}; use another one"
        )
    checksums_bytes = (directory / CHECKSUMS).read_bytes()
    if marker.read_bytes().strip() != hashlib.sha256(checksums_bytes).hexdigest().encode():
        raise InputError(f"{directory / CHECKSUMS} is damaged (sha256 differs); use another checkpoint")
    for name, checksum in _mapping(directory / CHECKSUMS).items():
        file = directory / name
        if not file.is_file() or sha256_of(file) != checksum:
            raise InputError(f"{file} is missing or damaged (sha256 differs); use another checkpoint")
    state = _mapping(directory / STATE)
    if (version := state.get("format_version")) not in READABLE:
        raise InputError(f"{directory} has format {version}, this program reads {' and '.join(map(str, READABLE))}")
    return state


def stored_state(directory: Path) -> dict[str, Any]:
    """Only state.json. Call read_state first: it checks the files."""
    return _mapping(directory / STATE)


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not JSON ({type(error).__name__}); use another checkpoint") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a mapping; use another checkpoint")
    return content


def load_model(directory: Path, model: PNFRec) -> None:
    """Loads a checkpoint's parameters, and the weights of its scores, into `model`.

    Call read_state first: it checks the files."""
    model.encoders.load_state_dict(_load(directory / MODEL))
    if WEIGHTS in (state := stored_state(directory)):  # checkpoints of before have those of the settings
        model.encoders.weights = ScoreWeights(**state[WEIGHTS])
    with torch.no_grad():
        model.item_table.weight.copy_(_table_rows(directory, model.item_table, "weight"))


def load_optimizer(directory: Path, model: PNFRec, optimizer: Optimizer) -> None:
    """Loads a checkpoint's optimizer state into `optimizer`, which has the model's parameters."""
    stored = _load(directory / OPTIMIZER)
    for name, parameter in model.named_parameters():
        if f"step.{name}" not in stored:
            continue
        moments = {"step": stored[f"step.{name}"].to(parameter.device)}
        for key in MOMENTS:
            of_table = parameter is model.item_table.weight
            moment = _table_rows(directory, model.item_table, key) if of_table else stored[f"{key}.{name}"]
            moments[key] = moment.to(parameter.device)
        optimizer.state[parameter] = moments


def stored_encoders(directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the encoders' parameters, the optimizer's state) of a complete checkpoint, as its files have them."""
    return _load(directory / MODEL), _load(directory / OPTIMIZER)


def stored_rows(directory: Path) -> Callable[[str, np.ndarray], Tensor]:
    """How to read rows of a complete checkpoint's item table: (weight, exp_avg or exp_avg_sq; item ids [R]) -> [R, D].

    The files are mapped into memory, not read whole.
    """
    bounds = stored_state(directory)["item_rows"]

    def rows(key: str, items: np.ndarray) -> Tensor:
        order = np.argsort(items, kind="stable")
        in_order, parts = items[order], []
        for rank, (first, end) in enumerate(pairwise(np.searchsorted(in_order, bounds))):
            if first < end or rank == 0:
                with _opened(directory / items_file(rank, len(bounds) - 1)) as file:
                    parts.append(file.get_tensor(key)[torch.from_numpy(in_order[first:end] - bounds[rank])])
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, torch.from_numpy(order), found)

    return rows


def items_file(rank: int, size: int) -> str:
    return f"items-{rank:05d}-of-{size:05d}.safetensors"


def _table_rows(directory: Path, table: ItemTable, key: str) -> Tensor:
    """This rank's rows of one tensor of the item table, from the stored shards that have them."""
    bounds = json.loads((directory / STATE).read_text(encoding="utf-8"))["item_rows"]
    if bounds[-1] != table.bounds[-1]:
        raise InputError(f"{directory} has {bounds[-1] - 1} items, the data set {table.num_items}; use another one")
    parts = []
    for rank, (first, end) in enumerate(pairwise(bounds)):
        low, high = max(first, table.first_row), min(end, table.end_row)
        if low < high:
            with _opened(directory / items_file(rank, len(bounds) - 1)) as file:
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


def _table_tensors(table: ItemTable, optimizer: Optimizer) -> dict[str, Tensor]:
    moments = optimizer.state.get(table.weight, {})
    return {"weight": table.weight.detach(), **{key: moments[key] for key in MOMENTS if key in moments}}


def _optimizer_tensors(model: PNFRec, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if key == "step" or parameter is not model.item_table.weight
    }
