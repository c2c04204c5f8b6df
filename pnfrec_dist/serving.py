"""The exported model as an MLflow pyfunc from code: safetensors, JSON and Parquet, no pickle.

model/                       what mlflow.pyfunc.load_model and models:/... read
  artifacts/exported/        encoders.safetensors, item_table.safetensors, model.json, items.parquet, and
                             pnfrec_dist.zip: this package, so that a process without it can load the model
"""

import json
import logging
import math
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from safetensors.torch import load_file, save_file

from pnfrec_dist.config import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.mappings import override, to_mapping
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.recommender import Recommender, Users
from pnfrec_dist.schema import ITEMS_NAME, PAD_ID
from pnfrec_dist.training.checkpoint import load_model
from pnfrec_dist.training.loop import build_model

ENCODERS, ITEM_TABLE, SETTINGS = "encoders.safetensors", "item_table.safetensors", "model.json"
CODE, PACKAGE = "pnfrec_dist.zip", Path(__file__).parent
REQUIREMENTS = ("mlflow", "torch", "numpy", "pyarrow", "safetensors", "pydantic")
EXAMPLES = 3


class Query(BaseModel):
    """One user: what is liked and disliked, or the history of both with its relevances; all oldest first."""

    liked: list[str] = Field(default=[], description="raw item ids that the user likes")
    disliked: list[str] = Field(default=[], description="raw item ids that the user dislikes")
    history: list[list[str]] = Field(
        default=[], description="[raw item id, relevance] of each interaction, in place of liked and disliked"
    )
    top_k: int = Field(default=10, ge=1, description="length of the list")
    gamma: float = Field(default=0.0, ge=0, description="weight of the negative encoder's score, taken off; 0: none")

    @field_validator("history", mode="before")
    @classmethod
    def _as_text(cls, entries: Any) -> Any:
        """Numbers as text: MLflow has no type for a list of both."""
        if not isinstance(entries, list):
            return entries
        numbers = (int, float)
        return [[str(v) if isinstance(v, numbers) else v for v in e] if isinstance(e, list) else e for e in entries]

    @model_validator(mode="after")
    def _require_history(self) -> "Query":
        if self.history and (self.liked or self.disliked):
            raise ValueError("say history, or liked and disliked, not both")
        for entry in self.history:
            if len(entry) != 2 or not _is_number(entry[1]):
                raise ValueError(f"history has {entry!r}; its entries must be [item, relevance], relevance a number")
        return self


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Answer(BaseModel):
    """The list for one user."""

    items: list[str] = Field(description="raw item ids, best first, without those asked with")
    scores: list[float]
    unknown: list[str] = Field(description="items asked with that the model does not know")
    popular: bool = Field(
        description="whether no item that the model reads was known, so that popular items are listed"
    )


class ServedModel(mlflow.pyfunc.PythonModel):
    """list[Query] -> list[Answer], by recommender.Recommender."""

    def load_context(self, context: Any) -> None:
        directory = Path(context.artifacts["exported"])
        self.exported = load_exported(directory)
        self.recommender = Recommender(self.exported.model, self.exported.num_positive_V)
        self.item_ids = {raw: number for number, raw in enumerate(self.exported.raw_ids, PAD_ID + 1)}

    def predict(  # type: ignore[override]  # MLflow reads the hints
        self, model_input: list[Query], params: dict[str, Any] | None = None
    ) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(model_input)
        for gamma in sorted({query.gamma for query in model_input}):
            places = [place for place, query in enumerate(model_input) if query.gamma == gamma]
            for place, answer in zip(places, self._answers([model_input[p] for p in places], gamma), strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _answers(self, queries: Sequence[Query], gamma: float) -> list[Answer]:
        raw_ids = self.exported.raw_ids
        sides = [self._sides(query) for query in queries]
        known = [
            [[self.item_ids[raw] for raw in side if raw in self.item_ids] for side in of_user] for of_user in sides
        ]
        users = Users(*(_ragged([of_user[place] for of_user in known]) for place in range(3)))
        longest = min(max(query.top_k for query in queries), len(raw_ids))
        ranking = self.recommender.rank(users, np.arange(len(queries)), longest, gamma)
        answers = []
        for place, query in enumerate(queries):
            items, scores = ranking.items_BK[place].tolist(), ranking.scores_BK[place].tolist()
            count = min(query.top_k, longest - items.count(PAD_ID))
            answers.append(
                Answer(
                    items=[raw_ids[item - 1] for item in items[:count]],
                    scores=scores[:count],
                    unknown=[raw for raw in dict.fromkeys(sides[place][2]) if raw not in self.item_ids],
                    popular=not known[place][0],
                )
            )
        return answers

    def _sides(self, query: Query) -> tuple[list[str], list[str], list[str]]:
        """Raw ids that the main encoder reads, those disliked, and all, oldest first.

        Of liked and disliked together, the order is not known: a model that reads both kinds gets the likes last.
        """
        if query.history:
            every = [item for item, _ in query.history]
            is_liked = [float(relevance) >= self.exported.threshold for _, relevance in query.history]
            liked = [raw for raw, is_one in zip(every, is_liked, strict=True) if is_one]
            disliked = [raw for raw, is_one in zip(every, is_liked, strict=True) if not is_one]
        else:
            liked, disliked = query.liked, query.disliked
            every = [*disliked, *liked]
        reads_all = self.exported.settings.encoder.history == "all"
        return (every if reads_all else liked), disliked, every


@dataclass(frozen=True)
class Exported:
    """A model as it was exported, ready to rank."""

    settings: Settings
    model: PNFRec
    raw_ids: list[str]
    """of the catalog, from item 1 on"""
    num_positive_V: np.ndarray
    """likes of each item in train, 0 of padding"""
    threshold: float
    """relevance at and above which an interaction is a like"""


def load_exported(directory: Path) -> Exported:
    """The model in a directory that save_model made (artifacts/exported)."""
    content = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
    settings = override(Settings(), content["settings"], str(directory / SETTINGS))
    catalog = pq.read_table(directory / ITEMS_NAME)
    model = build_model(len(catalog), settings).eval()
    model.encoders.load_state_dict(load_file(directory / ENCODERS))
    with torch.no_grad():
        model.item_table.weight.copy_(load_file(directory / ITEM_TABLE)["weight"])
    likes_V = np.concatenate([[0], catalog["num_positive"].to_numpy()])
    raw_ids = catalog["raw_item_id"].to_pylist()
    return Exported(settings, model, raw_ids, likes_V, content["threshold"])


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
    threshold, digest = data.manifest.threshold, data.manifest.digest
    content = {"settings": to_mapping(settings), "threshold": threshold, "data_digest": digest}
    (directory / SETTINGS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with zipfile.ZipFile(directory / CODE, "w", zipfile.ZIP_DEFLATED) as archive:  # a file each would be sent apart
        for file in sorted(PACKAGE.rglob("*.py")):
            archive.write(file, Path(PACKAGE.name) / file.relative_to(PACKAGE))
    raw_ids = data.raw_item_ids()
    likes = data.item_counts(positive_only=True)[1:]
    pq.write_table(pa.table({"raw_item_id": raw_ids, "num_positive": likes}), directory / ITEMS_NAME)
    return raw_ids.slice(0, EXAMPLES).to_pylist()
