"""A trained model with what it needs to rank (settings, item ids, threshold of likes), in memory and as files.

model.json                 settings, threshold, digest of the data, sha256 of the files below
encoders.safetensors       the encoders' parameters by name
item_table.safetensors     weight
items.parquet              raw_item_id, num_positive; starts at item 1
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pnfrec_dist.config.mappings import override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.schema import ITEMS_NAME
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreWeights
from pnfrec_dist.training.checkpoint import WEIGHTS, load_model
from pnfrec_dist.training.initial_model import build_model

ENCODERS, ITEM_TABLE, MODEL_JSON = "encoders.safetensors", "item_table.safetensors", "model.json"
MODEL_DIRECTORY = "model"
"""in a run's directory: its model in MLflow's format (pyfunc.py)"""
IN_MLFLOW = "artifacts/exported"
"""in a model in MLflow's format: the files above"""


@dataclass(frozen=True)
class Exported:
    """A trained model, ready to rank."""

    settings: Settings
    model: PNFRec
    raw_ids: list[str]
    """raw ids of the catalog, starting at item 1"""
    num_positive_V: np.ndarray
    """likes of each item in train; 0 for padding"""
    threshold: float
    """relevance at and above which an interaction is a like"""
    data_digest: str
    """digest of the prepared data set on which it was trained"""

    def gamma(self, asked: float | None) -> float:
        """asked; if it is None, that with which the model was tested in its training (evaluation.gamma)."""
        return self.model.encoders.weights.gamma if asked is None else asked


def of_checkpoint(checkpoint: Path, settings: Settings, data: PreparedData) -> Exported:
    """The model of a complete checkpoint. Call read_state first: it checks the files."""
    model = build_model(data.num_items, settings).eval()
    load_model(checkpoint, model)
    raw_ids, likes_V = data.raw_item_ids().to_pylist(), data.item_counts(positive_only=True)
    return Exported(settings, model, raw_ids, likes_V, data.manifest.threshold, data.manifest.digest)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 of the names and values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_exported(directory: Path, exported: Exported) -> None:
    """Writes the files into a new directory."""
    model = exported.model
    directory.mkdir(parents=True)
    save_file({name: p.detach() for name, p in model.encoders.named_parameters()}, directory / ENCODERS)
    save_file({"weight": model.item_table.weight.detach()}, directory / ITEM_TABLE)
    catalog = pa.table({"raw_item_id": exported.raw_ids, "num_positive": exported.num_positive_V[1:]})
    pq.write_table(catalog, directory / ITEMS_NAME)
    content = {
        "settings": to_mapping(exported.settings),
        WEIGHTS: asdict(model.encoders.weights),
        "threshold": exported.threshold,
        "data_digest": exported.data_digest,
        "sha256": {name: sha256_of(directory / name) for name in (ENCODERS, ITEM_TABLE, ITEMS_NAME)},
    }
    (directory / MODEL_JSON).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_exported(directory: Path) -> Exported:
    """Reads what write_exported wrote. Raises InputError that names a missing or damaged file."""
    content = _content(directory / MODEL_JSON)
    settings = override(Settings(), content["settings"], str(directory / MODEL_JSON))
    for name, checksum in content["sha256"].items():
        file = directory / name
        if not file.is_file() or sha256_of(file) != checksum:
            raise InputError(f"{file} is missing or damaged (sha256 differs); use another copy of the model")
    catalog = pq.read_table(directory / ITEMS_NAME)
    model = build_model(len(catalog), settings).eval()
    model.encoders.load_state_dict(load_file(directory / ENCODERS))
    with torch.no_grad():
        model.item_table.weight.copy_(load_file(directory / ITEM_TABLE)["weight"])
    if WEIGHTS in content:  # models of before have those of the settings
        model.encoders.weights = ScoreWeights(**content[WEIGHTS])
    likes_V = np.concatenate([[0], catalog["num_positive"].to_numpy()])
    raw_ids = catalog["raw_item_id"].to_pylist()
    return Exported(settings, model, raw_ids, likes_V, content["threshold"], content["data_digest"])


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file.parent} is not an exported model (it has no {file.name}); use another one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); use another copy of the model") from error
    needed = {"settings", "threshold", "data_digest", "sha256"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise InputError(f"{file} lacks one of {', '.join(sorted(needed))}: it is damaged, or from an earlier version")
    return content
