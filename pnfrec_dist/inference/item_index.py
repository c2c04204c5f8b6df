"""An approximate index of the catalog: candidates for users without a score for every item (FAISS, IVF).

The highest dot products are searched as the smallest distances: an item vector v gets one more number,
sqrt(max |v|^2 - |v|^2), and a user vector a 0 (Bachrach et al., RecSys 2014, section 3). The item vectors are clustered
into about 4 sqrt(N) lists (Jegou, Douze and Schmid, 2011). A search reads the lists with the nearest centres. How many,
is chosen when the index is built: the fewest with which the wanted share of the exact best 100 items is found for some
users.

items.faiss   the index; its ids are item ids - 1
index.json    which model it is of, lists in all and lists searched, recall, sha256 of items.faiss

B users, C candidates of each, D width, N items.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import replaced_directory, write_json, writing
from pnfrec_dist.files.locations import reading, sha256_of
from pnfrec_dist.inference.artifact import Exported, weights_digest
from pnfrec_dist.inference.candidates import ABOUT
from pnfrec_dist.model.top_k import rank_items, table_scores

api: Any = faiss  # made from C++, which no type checker sees
KIND = "pnfrec-dist index"
INDEX = "items.faiss"
COUNT = 100
"""Items of a user among which recall is measured."""
SEED = 1234


@dataclass(frozen=True)
class About:
    """What index.json holds."""

    weights_sha256: str
    """of the item vectors"""
    num_items: int
    lists: int
    searched: int
    """lists that a search reads"""
    recall: float
    """share of the exact best 100 items that the index finds, mean over `users`"""
    users: int
    sha256: str
    """of items.faiss"""
    kind: str = KIND


class ItemIndex:
    """Finds candidates for users."""

    def __init__(self, index: Any, searched: int) -> None:
        self._index = index
        self.searched = searched

    def candidates(self, hidden_BD: Tensor, count: int) -> Tensor:
        """Item ids with the highest scores that the search finds, int64 [B, C]; 0 where it finds fewer."""
        api.omp_set_num_threads(torch.get_num_threads())
        parameters = api.SearchParametersIVF(nprobe=self.searched)
        queries = np.ascontiguousarray(F.pad(hidden_BD.float().cpu(), (0, 1)).numpy())
        _, found = self._index.search(queries, count, params=parameters)
        return torch.from_numpy(found + 1)


def build(trained: Exported, hidden_BD: Tensor, wanted: float, directory: Path) -> About:
    """Writes an index of the model's items, replacing an earlier one.

    hidden_BD: vectors of some users; wanted: share of their exact best items to be found. Raises InputError for a
    directory with other content.
    """
    require_replaceable(directory)
    vectors = _lengthened(trained.model.item_table.weight.detach().float()[1:])
    lists = max(1, min(round(4 * len(vectors) ** 0.5), len(vectors) // 39))  # FAISS wants 39 points of each list
    width = vectors.shape[1]
    index = api.IndexIVFFlat(api.IndexFlatL2(width), width, lists, api.METRIC_L2)
    index.cp.seed = SEED
    index.train(vectors)
    index.add(vectors)
    exact_BC = _exact(trained, hidden_BD)
    searched = _fewest(lambda count: _recall(ItemIndex(index, count), hidden_BD, exact_BC), lists, wanted)
    recall = _recall(ItemIndex(index, searched), hidden_BD, exact_BC)
    with writing(f"--out {directory}", "name another"), replaced_directory(directory) as draft:
        api.write_index(index, str(draft / INDEX))
        about = About(_digest(trained), len(vectors), lists, searched, recall, len(hidden_BD), sha256_of(draft / INDEX))
        write_json(draft / ABOUT, asdict(about), indent=1)
    return about


def open_index(directory: Path, trained: Exported) -> ItemIndex:
    """Raises InputError for a damaged index, and for one of another model."""
    about = about_index(directory)
    if sha256_of(directory / INDEX) != about.sha256:
        raise InputError(f"{directory / INDEX} is damaged (sha256 differs); build it again: pnfrec index")
    if about.weights_sha256 != _digest(trained):
        raise InputError(f"--index {directory} is of another model; build one of this model: pnfrec index")
    return mapped(directory)


def mapped(directory: Path) -> ItemIndex:
    """An index that open_index has checked, mapped into memory."""
    about = about_index(directory)
    return ItemIndex(api.read_index(str(directory / INDEX), api.IO_FLAG_MMAP), about.searched)


def about_index(directory: Path) -> About:
    """Raises InputError if the directory is no index."""
    with reading(directory / ABOUT, "build an index with: pnfrec index"):
        content = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(f"{directory} is no index; build one with: pnfrec index")
    return About(**content)


def require_replaceable(directory: Path) -> None:
    """Raises InputError if `directory` contains anything but an earlier index."""
    if directory.exists() and (not directory.is_dir() or {path.name for path in directory.iterdir()} - {INDEX, ABOUT}):
        raise InputError(f"--out is {str(directory)!r}, which exists and is no earlier index; name a new directory")


def _digest(trained: Exported) -> str:
    return weights_digest({"weight": trained.model.item_table.weight})


def _lengthened(vectors_ND: Tensor) -> np.ndarray:
    """The vectors with one more number, so that all are of the same length, [N, D + 1]."""
    squares_N = vectors_ND.square().sum(1)
    more_N = (squares_N.max() - squares_N).clamp(min=0).sqrt()
    return np.ascontiguousarray(torch.cat([vectors_ND, more_N[:, None]], dim=1).numpy())


def _exact(trained: Exported, hidden_BD: Tensor) -> Tensor:
    users = np.arange(len(hidden_BD))
    nothing = Ragged(np.zeros(len(users) + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
    count = min(COUNT, trained.model.item_table.num_items)
    return rank_items(table_scores(hidden_BD, trained.model.item_table), count, nothing, users).items_BK


def _recall(index: ItemIndex, hidden_BD: Tensor, exact_BC: Tensor) -> float:
    found_BC = index.candidates(hidden_BD, exact_BC.shape[1])
    hits = sum(torch.isin(exact_C, found_C).sum().item() for exact_C, found_C in zip(exact_BC, found_BC, strict=True))
    return hits / exact_BC.numel()


def _fewest(recall: Callable[[int], float], lists: int, wanted: float) -> int:
    """The fewest lists to search with which recall(lists) is at least `wanted`; all of them give 1."""
    low, high = 0, 1
    while high < lists and recall(high) < wanted:
        low, high = high, 2 * high
    high = min(high, lists)
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= wanted else (middle, high)
    return high
