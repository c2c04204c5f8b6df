"""Checkpoints: a directory that is whole or absent, and whose damage is noticed before it is used.

model.safetensors       the model's parameters by name
optimizer.safetensors   Adam's state: "<exp_avg | exp_avg_sq | step>.<parameter name>"
state.json              TrainState, settings, digest of the data, format version
checksums.json          sha256 of the three files above
COMMITTED               sha256 of checksums.json, written last
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pnfrec_dist.errors import InputError
from pnfrec_dist.storage import sha256_of, sync_to_disk

FORMAT_VERSION = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CHECKSUMS, COMMITTED = "checksums.json", "COMMITTED"


def save_checkpoint(directory: Path, model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Writes a checkpoint beside `directory` and renames it into place after fsync; an older one there is replaced."""
    draft = directory.with_name(f".{directory.name}.writing-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: _plain(p) for name, p in model.state_dict().items()}, draft / MODEL)
    save_file(_optimizer_tensors(model, optimizer), draft / OPTIMIZER)
    content = {"format_version": FORMAT_VERSION, **state}
    (draft / STATE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    checksums = {name: sha256_of(draft / name) for name in (MODEL, OPTIMIZER, STATE)}
    (draft / CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")
    for name in (MODEL, OPTIMIZER, STATE, CHECKSUMS):
        sync_to_disk(draft / name)
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


def load_model(directory: Path, model: nn.Module) -> None:
    """Puts a checkpoint's parameters into `model`. Call read_state first: it checks the files."""
    model.load_state_dict(_load(directory / MODEL))


def load_optimizer(directory: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Puts a checkpoint's optimizer state into `optimizer`, which holds the model's parameters."""
    stored = _load(directory / OPTIMIZER)
    for name, parameter in model.named_parameters():
        entries = {
            key: stored[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}.{name}" in stored
        }
        moments = {key: t.to(parameter.device) if key != "step" else t for key, t in entries.items()}
        if moments:
            optimizer.state[parameter] = moments


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}); use another checkpoint") from error


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}.{name}": _plain(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cpu")).contiguous()
