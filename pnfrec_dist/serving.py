"""The exported model as an MLflow pyfunc from code: safetensors, JSON and Parquet, no pickle.

model/                       what mlflow.pyfunc.load_model and models:/... read
  artifacts/exported/        encoders.safetensors, item_table.safetensors, model.json, items.parquet, and
                             pnfrec_dist.zip: this package, so that a process without it can load the model
"""

import json
import logging
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file, save_file

from pnfrec_dist.config import Settings
from pnfrec_dist.data.batch import history_batch
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.mappings import override, to_mapping
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.retrieval import rank_items, table_scores
from pnfrec_dist.schema import ITEMS_NAME, PAD_ID
from pnfrec_dist.training.checkpoint import load_model
from pnfrec_dist.training.loop import build_model

ENCODERS, ITEM_TABLE, SETTINGS = "encoders.safetensors", "item_table.safetensors", "model.json"
CODE, PACKAGE = "pnfrec_dist.zip", Path(__file__).parent
REQUIREMENTS = ("mlflow", "torch", "numpy", "pyarrow", "safetensors", "pydantic")
EXAMPLES = 3


class Query(BaseModel):
    """One user."""

    liked: list[str] = Field(description="raw item ids that the user likes, oldest first")
    top_k: int = Field(default=10, ge=1, description="length of the list")


class Answer(BaseModel):
    """The list for one user."""

    items: list[str] = Field(description="raw item ids, best first, without those asked with")
    scores: list[float]
    unknown: list[str] = Field(description="liked items that the model does not know")


class Recommender(mlflow.pyfunc.PythonModel):
    """list[Query] -> list[Answer], by the main encoder over the liked items."""

    def load_context(self, context: Any) -> None:
        directory = Path(context.artifacts["exported"])
        content = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        settings = override(Settings(), content["settings"], str(directory / SETTINGS))
        self.raw_ids: list[str] = pq.read_table(directory / ITEMS_NAME)["raw_item_id"].to_pylist()
        self.item_ids = {raw: number for number, raw in enumerate(self.raw_ids, PAD_ID + 1)}
        self.model = build_model(len(self.raw_ids), settings).eval()
        self.model.encoders.load_state_dict(load_file(directory / ENCODERS))
        with torch.no_grad():
            self.model.item_table.weight.copy_(load_file(directory / ITEM_TABLE)["weight"])

    @torch.inference_mode()
    def predict(  # type: ignore[override]  # MLflow reads the hints
        self, model_input: list[Query], params: dict[str, Any] | None = None
    ) -> list[Answer]:
        if not model_input:
            return []
        known = [[self.item_ids[raw] for raw in query.liked if raw in self.item_ids] for query in model_input]
        rows = np.arange(len(known))
        histories = _ragged(known)
        hidden_BD = self.model.last_hidden(history_batch(histories, rows, self.model.max_length, torch.device("cpu")))
        longest = min(max((query.top_k for query in model_input), default=1), len(self.raw_ids))
        ranking = rank_items(table_scores(hidden_BD, self.model.item_table), longest, histories, rows)
        answers = []
        for query, items, scores in zip(
            model_input, ranking.items_BK.tolist(), ranking.scores_BK.tolist(), strict=True
        ):
            listed = [(item, score) for item, score in zip(items, scores, strict=True) if item != PAD_ID]
            listed = listed[: query.top_k]
            answers.append(
                Answer(
                    items=[self.raw_ids[item - 1] for item, _ in listed],
                    scores=[score for _, score in listed],
                    unknown=[raw for raw in query.liked if raw not in self.item_ids],
                )
            )
        return answers


def _ragged(lists: Sequence[Sequence[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
    return Ragged(offsets, np.array([item for items in lists for item in items], dtype=np.int64))


def save_model(directory: Path, checkpoint: Path, settings: Settings, data: PreparedData) -> None:
    """Writes the model of a whole checkpoint into `directory`, in MLflow's form, with signature and input example."""
    workspace = directory.with_name(f".{directory.name}.writing")
    exported, draft = workspace / "exported", workspace / directory.name
    shutil.rmtree(workspace, ignore_errors=True)
    try:
        raw_ids = _export(exported, checkpoint, settings, data)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                path=draft,
                python_model=str(PACKAGE / "serving_model.py"),
                artifacts={"exported": str(exported)},
                input_example=[Query(liked=raw_ids[:EXAMPLES], top_k=5).model_dump()],
                pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS],
                metadata={"model": settings.model, "dataset": settings.dataset, "data_digest": data.manifest.digest},
            )
        shutil.rmtree(directory, ignore_errors=True)
        draft.rename(directory)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _export(directory: Path, checkpoint: Path, settings: Settings, data: PreparedData) -> list[str]:
    """The model's own files, and the raw ids of the catalog."""
    model: PNFRec = build_model(data.num_items, settings)
    load_model(checkpoint, model)
    directory.mkdir(parents=True)
    save_file({name: p.detach() for name, p in model.encoders.named_parameters()}, directory / ENCODERS)
    save_file({"weight": model.item_table.weight.detach()}, directory / ITEM_TABLE)
    content = {"settings": to_mapping(settings), "data_digest": data.manifest.digest}
    (directory / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with zipfile.ZipFile(directory / CODE, "w", zipfile.ZIP_DEFLATED) as archive:  # a file each would be sent apart
        for file in sorted(PACKAGE.rglob("*.py")):
            archive.write(file, Path(PACKAGE.name) / file.relative_to(PACKAGE))
    raw_ids = data.raw_item_ids()
    pq.write_table(pa.table({"raw_item_id": raw_ids}), directory / ITEMS_NAME)
    return raw_ids.slice(0, EXAMPLES).to_pylist()
