"""Exports a model as vectors and encoders that work without this package, and compares them with the model.

items.npy             [N, D] float32; row i: the vector of item i + 1
items.parquet         item_id, raw_item_id, vector
encoder.pt2           torch.export: item ids [B, L] -> user vectors [B, D]; see PlainEncoder
negative_encoder.pt2  the same for next dislikes, if the model predicts them
manifest.json         which model it is, how to use it, sizes and sha256 of the files

B users, L positions, D width, N items.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import ITEMS_NAME, MANIFEST_NAME, PAD_ID
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.files.atomic import replaced_directory, write_json, writing
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.files.text import file_size
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.standalone_encoder import PlainEncoder

KIND = "pnfrec-dist export"
VECTORS, ENCODER, NEGATIVE_ENCODER = "items.npy", "encoder.pt2", "negative_encoder.pt2"
TOLERANCE = 1e-5
"""Largest difference of scores, relative to the largest score if that is above 1."""

USE = {
    VECTORS: "row i is the vector of item i + 1; a user's vector times it is the item's score",
    ITEMS_NAME: "item_id, raw_item_id, vector",
    ENCODER: "item ids, int64 [users, length] -> user vectors [users, vector_size]; the ids are a user's liked items "
    "(reads: positive), all items (reads: all), or all items with minus the id of a disliked one (reads: signed or "
    "both), the newest max_length, oldest first, right-padded with 0",
    NEGATIVE_ENCODER: "the same for disliked items (reads: signed or both: for the input of encoder.pt2); use user "
    "vector - gamma * this vector for scores with gamma",
}
"""What manifest.json says about the files."""
COMPARED = 10_000
"""Number of items whose scores are compared, spread over the catalog."""


def require_replaceable(directory: Path) -> None:
    """Raises InputError if `directory` contains anything but an earlier export."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        own = {MANIFEST_NAME, *manifest["files"]} if manifest["kind"] == KIND else set[str]()
    except (OSError, ValueError, KeyError, TypeError):
        own = set[str]()
    if not own:
        raise InputError(f"--out is {str(directory)!r}, which exists and is no earlier export; name a new directory")
    for path in sorted(directory.iterdir()):
        if path.name not in own:
            raise InputError(f"{path} is not part of the earlier export in {directory}; move it, or name a new --out")


def export(exported: Exported, directory: Path) -> str:
    """Writes the export, replacing an earlier one, and returns the text to show.

    Raises InputError for a directory with other content, RunError if the files do not score like the model.
    """
    require_replaceable(directory)
    with writing(f"--out {str(directory)!r}", "name another"), replaced_directory(directory) as draft:
        _write(exported, draft)
        _compare(exported.model, draft)
        manifest = _manifest(exported, draft)
        write_json(draft / MANIFEST_NAME, manifest, indent=2)
    lines = [f"  {name:<22}{file_size(entry['bytes']):>11}" for name, entry in manifest["files"].items()]
    return "\n".join([f"{directory}:", *lines, "", usage(directory, exported)])


def usage(directory: Path, exported: Exported) -> str:
    """Python code that computes scores from the files."""
    example = list(range(1, min(3, exported.model.max_length, len(exported.raw_ids)) + 1))
    signs = "; minus the id of a disliked item" if exported.settings.encoder.history_kind.reads_signs else ""
    lines = [
        "import numpy as np, torch",
        f'items_ND = np.load("{directory / VECTORS}")',
        f'encoder = torch.export.load("{directory / ENCODER}").module()',
        f"ids_BL = torch.tensor([{example}])  # item ids, oldest first{signs}, right-padded with 0",
        "user_BD = encoder(ids_BL)",
    ]
    if gamma := exported.gamma(None):
        lines.append(f'negative_encoder = torch.export.load("{directory / NEGATIVE_ENCODER}").module()')
        ids = "ids_BL"
        if not signs:
            ids = "disliked_BL"
            disliked = [len(exported.raw_ids) - place for place in range(len(example))]
            lines.append(f"{ids} = torch.tensor([{disliked}])  # disliked items; without any, leave out the next line")
        lines.append(f"user_BD = user_BD - {gamma:g} * negative_encoder({ids})  # gamma of the training")
    lines.append("scores_BN = user_BD.detach().numpy() @ items_ND.T  # column i: item i + 1")
    return "\n".join(lines)


def _write(exported: Exported, draft: Path) -> None:
    vectors_ND = exported.model.item_table.weight.detach().cpu()[PAD_ID + 1 :].numpy()
    np.save(draft / VECTORS, vectors_ND)
    columns = {
        "item_id": pa.array(np.arange(PAD_ID + 1, len(vectors_ND) + 1, dtype=np.int32)),
        "raw_item_id": pa.array(exported.raw_ids),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1]),
    }
    pq.write_table(pa.table(columns), draft / ITEMS_NAME)
    for name, encoder in _encoders(exported.model).items():
        length = exported.model.max_length
        dynamic = {0: torch.export.Dim("users", min=1)}
        if length > 1:
            dynamic[1] = torch.export.Dim("length", min=1, max=length)
        example_BL = torch.ones(2, length, dtype=torch.int64)
        with torch.no_grad():
            program = torch.export.export(encoder, (example_BL,), dynamic_shapes=(dynamic,))
        torch.export.save(program, draft / name)


def _encoders(model: PNFRec) -> dict[str, PlainEncoder]:
    """File name -> encoder."""
    parts, table, signs = model.encoders, model.item_table, model.encoders.main.reads_signs
    of_main = [parts.main, *([parts.likes] if parts.likes is not None else [])]
    found = {ENCODER: PlainEncoder(table, parts.liking, of_main, reads_signs=signs)}
    if parts.negative is not None:
        found[NEGATIVE_ENCODER] = PlainEncoder(table, parts.negative.forward, [parts.negative], reads_signs=False)
    if parts.dislike_head is not None:
        headed = [*of_main, parts.dislike_head]
        found[NEGATIVE_ENCODER] = PlainEncoder(table, parts.disliking, headed, reads_signs=signs)
    return {name: encoder.eval() for name, encoder in found.items()}


def _compare(model: PNFRec, draft: Path) -> None:
    """Raises RunError if the files give other scores than the model, for several lengths and batch sizes."""
    vectors_ND = np.load(draft / VECTORS, mmap_mode="r")
    chosen = np.unique(np.linspace(0, len(vectors_ND) - 1, COMPARED).astype(int))
    vectors_DN = torch.from_numpy(vectors_ND[chosen]).T
    own_DN = model.item_table.weight[torch.from_numpy(chosen) + PAD_ID + 1].T
    own = {ENCODER: model.last_hidden, NEGATIVE_ENCODER: model.last_negative_hidden}
    rng, longest = np.random.default_rng(0), model.max_length
    for name in _encoders(model):
        written = torch.export.load(draft / name).module()
        for users, length in ((1, 1), (1, longest), (3, (longest + 1) // 2), (2 * longest + 1, longest)):
            lengths = np.arange(length, length - users, -1) % (length + 1)  # longest first; one user without items
            items = rng.integers(PAD_ID + 1, len(vectors_ND) + 1, int(lengths.sum()))
            if model.encoders.main.reads_signs:
                items *= rng.choice([-1, 1], len(items))
            histories = Ragged(np.concatenate([[0], np.cumsum(lengths)]), items)
            rows = np.arange(users)
            items_BL = torch.from_numpy(histories.newest(rows, longest)[0])
            with torch.no_grad():
                found_BN = written(items_BL) @ vectors_DN
                hidden_BD = own[name](history_batch(histories, rows, longest, torch.device("cpu")))
                _require_equal(found_BN, hidden_BD @ own_DN, f"{name} {users} users")


def _require_equal(found_BN: Tensor, model_BN: Tensor, what: str) -> None:
    difference = (found_BN - model_BN).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, model_BN.abs().max().item()):
        raise RunError(f"{what}: scores differ from the model's by {difference:.2e}; nothing is exported")


def _manifest(exported: Exported, draft: Path) -> dict[str, Any]:
    settings, files = exported.settings, sorted(draft.iterdir())
    return {
        "kind": KIND,
        "model": settings.model,
        "dataset": settings.dataset,
        "data_digest": exported.data_digest,
        "num_items": len(exported.raw_ids),
        "hidden_size": settings.encoder.hidden_size,
        "vector_size": settings.encoder.vector_size,
        "max_length": exported.model.max_length,
        "gamma": exported.gamma(None),
        "reads": settings.encoder.history,
        "threshold": exported.threshold,
        "use": {file.name: USE[file.name] for file in files},
        "settings": to_mapping(settings),
        "torch": metadata.version("torch"),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
