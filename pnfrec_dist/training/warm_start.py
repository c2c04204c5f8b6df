"""Warm start: a run begins with the weights of a trained model, on data with other items.

It begins with a checkpoint of no steps, which any number of workers reads as every other checkpoint. Items keep their
vectors and their optimizer state by raw id. A new item starts at the mean of its users: for each training user who
interacted with it, the mean vector of the user's known items; of these, the mean over its users. Items whose users know
no other item start like those of a new model, normal(0, 0.02).

N items of the new data, M of the trained model, K new items, D width, B users of a block.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData, TrainData
from pnfrec_dist.data.raw_ids import places
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.distributed import initial_generator
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import draft_of
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.encoder import INIT_STD
from pnfrec_dist.training.checkpoint import MODEL, MOMENTS, OPTIMIZER, Files, commit, items_file, write_part
from pnfrec_dist.training.checkpoint_manager import checkpoint_path
from pnfrec_dist.training.state import TrainState

ROWS = 1 << 20
"""Rows of the item table in one file of the checkpoint, and in memory at a time."""
USERS = 4096
"""Users whose vectors are in memory at a time."""
MUST_BE_EQUAL = ("hidden_size", "num_blocks", "block", "num_heads", "history", "max_length")
"""Of the settings of the encoder: what its weights depend on."""


@dataclass(frozen=True)
class Source:
    """A trained model whose weights a run begins with."""

    reference: str
    """as the user named it"""
    settings: Settings
    raw_ids: Sequence[str]
    """of its items 1 to M"""
    encoders: dict[str, Tensor]
    """parameters by name"""
    rows: Callable[[str, np.ndarray], Tensor]
    """(weight, exp_avg or exp_avg_sq; item ids) -> these rows of the item table"""
    optimizer: dict[str, Tensor]
    """optimizer state of the encoders, as in a checkpoint; empty if only the weights are known"""


@dataclass(frozen=True)
class Catalogs:
    """How the items of new data correspond to those of a trained model."""

    source_of_N: np.ndarray
    """[N + 1]: the item id in the trained model; 0 for padding and for new items"""
    num_gone: int
    """items of the trained model that the new data do not have"""

    @property
    def new_K(self) -> np.ndarray:
        """Ids of the new items."""
        return np.flatnonzero(self.source_of_N[1:] == 0) + 1

    def __str__(self) -> str:
        known, new = len(self.source_of_N) - 1 - len(self.new_K), len(self.new_K)
        return f"{known:,} items keep their vectors, {new:,} are new, {self.num_gone:,} are gone"


def catalogs(source: Source, data: PreparedData) -> Catalogs:
    """Raises InputError if the data have no item of the trained model."""
    place_N = places(data.raw_item_ids(), source.raw_ids)
    known = int((place_N >= 0).sum())
    if not known:
        raise InputError(
            f"--init-from {source.reference}: {data.directory} has no item of that model, which knows items such as "
            f"{source.raw_ids[0]}; the data set has items such as {data.raw_item_ids()[0]}"
        )
    return Catalogs(np.concatenate([[0], place_N + 1]), len(source.raw_ids) - known)


def require_same_model(source: Source, settings: Settings) -> None:
    """Raises InputError that names what differs, and the flags with which the weights can be kept."""
    own, other = (flatten(to_mapping(one.encoder)) for one in (settings, source.settings))
    differ = [name for name in MUST_BE_EQUAL if own[name] != other[name]]
    if differ:
        found = ", ".join(f"encoder.{name} {other[name]}, not {own[name]}" for name in differ)
        flags = " ".join(f"--encoder.{name} {other[name]}" for name in differ)
        raise InputError(f"--init-from {source.reference}: that model has {found}; to keep its weights, give {flags}")
    has, needs = (needed_parts(one.loss).negative for one in (source.settings, settings))
    if has != needs:
        told = "has an encoder for dislikes" if has else "has no encoder for dislikes"
        raise InputError(
            f"--init-from {source.reference}: that model, {source.settings.model}, {told}, and {settings.model} "
            f"{'does not' if has else 'needs one'}; to keep its weights, give --model {source.settings.model}"
        )


def write_start(run_dir: Path, source: Source, settings: Settings, data: PreparedData) -> None:
    """Writes the checkpoint with which the run begins. Call require_same_model first."""
    found = catalogs(source, data)
    start_K = new_vectors(source, found, settings, data.train(settings.encoder.history))
    bounds = [*range(0, len(found.source_of_N), ROWS), len(found.source_of_N)]
    path = checkpoint_path(run_dir, 0)
    draft = draft_of(path, "start")
    shutil.rmtree(draft, ignore_errors=True)
    for part, (first, end) in enumerate(pairwise(bounds)):
        files: Files = {items_file(part, len(bounds) - 1): _table_rows(source, found, start_K, first, end)}
        if part == 0:
            files |= {MODEL: source.encoders, OPTIMIZER: source.optimizer}
        write_part(draft, part, files, _state(settings, data, bounds) if part == 0 else None)
    commit(draft, path, len(bounds) - 1)


def new_vectors(source: Source, found: Catalogs, settings: Settings, train: TrainData) -> Tensor:
    """The vectors with which new items start, [K, D]."""
    new_K = found.new_K
    place_N = np.full(len(found.source_of_N), -1)
    place_N[new_K] = np.arange(len(new_K))
    sum_K = torch.zeros(len(new_K), settings.encoder.vector_size)
    users_K = torch.zeros(len(new_K))
    sides = [side for side in (train.history, train.negative) if side is not None]
    for first in range(0, len(train), USERS):
        users_B = np.arange(first, min(first + USERS, len(train)))
        pairs = [side.pairs(users_B) for side in sides]
        user, item = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        user, item = np.unique(np.stack([user, np.abs(item)]), axis=1)
        mean_B, has_known_B = _means_of_known(source, found, (user, item), len(users_B))
        is_new = (place_N[item] >= 0) & has_known_B[user]
        places = torch.from_numpy(place_N[item[is_new]])
        sum_K.index_add_(0, places, mean_B[torch.from_numpy(user[is_new])])
        users_K.index_add_(0, places, torch.ones(len(places)))
    drawn_K = torch.empty_like(sum_K).normal_(0.0, INIT_STD, generator=initial_generator(settings.seed))
    return torch.where(users_K[:, None] > 0, sum_K / users_K.clamp(min=1)[:, None], drawn_K)


def _means_of_known(
    source: Source, found: Catalogs, interactions: tuple[np.ndarray, np.ndarray], users: int
) -> tuple[Tensor, np.ndarray]:
    """(mean vector of each user's known items [B, D], whether there is one [B])."""
    user, item = interactions
    is_known = found.source_of_N[item] > 0
    user, item = user[is_known], item[is_known]
    distinct, place = np.unique(found.source_of_N[item], return_inverse=True)
    vectors = source.rows("weight", distinct)
    owner = torch.from_numpy(user)
    sum_B = torch.zeros(users, vectors.shape[1]).index_add_(0, owner, vectors[torch.from_numpy(place)])
    count_B = torch.bincount(owner, minlength=users)
    return sum_B / count_B.clamp(min=1)[:, None], count_B.numpy() > 0


def _table_rows(source: Source, found: Catalogs, start_K: Tensor, first: int, end: int) -> dict[str, Tensor]:
    """Rows first..end - 1 of the item table; optimizer state is 0 for new items."""
    source_of = found.source_of_N[first:end]
    is_known = source_of > 0
    new_K = found.new_K
    is_here = (new_K >= first) & (new_K < end)
    tensors = {}
    for name in ("weight", *(MOMENTS if source.optimizer else ())):
        rows = torch.zeros(end - first, start_K.shape[1])
        rows[torch.from_numpy(is_known)] = source.rows(name, source_of[is_known])
        if name == "weight":
            rows[torch.from_numpy(new_K[is_here] - first)] = start_K[torch.from_numpy(is_here)]
        tensors[name] = rows
    if first <= PAD_ID < end:
        assert not tensors["weight"][PAD_ID - first].any()
    return tensors


def _state(settings: Settings, data: PreparedData, bounds: list[int]) -> dict[str, Any]:
    return {
        "train_state": TrainState().to_mapping(),
        "epochs": [],
        "settings": to_mapping(settings),
        "data_digest": data.manifest.digest,
        "num_items": data.num_items,
        "num_workers": 1,
        "item_rows": bounds,
    }
