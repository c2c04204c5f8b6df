"""A trained model as an MLflow pyfunc (a model from code): safetensors, JSON and Parquet, no pickle.

model/                       what mlflow.pyfunc.load_model and models:/... read
  artifacts/exported/        the files of artifact.py, and pnfrec_dist.zip: this package, so that a process without it
                             can load the model
"""

import logging
import math
import warnings
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import torch
from mlflow.exceptions import MlflowException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from pnfrec_dist.distributed import torch_threads
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import draft_of, replaced_directory, scratch_directory
from pnfrec_dist.inference.artifact import Exported, load_exported, write_exported
from pnfrec_dist.inference.loaded_model import Feedback, Model
from pnfrec_dist.inference.recommender import require_gamma

CODE, PACKAGE = "pnfrec_dist.zip", Path(__file__).parents[1]
REQUIREMENTS = ("torch", "numpy", "pyarrow", "safetensors", "pydantic")
EXAMPLES = 3
SMALL_CALL = 1 << 18
"""Calls with at most this many scores use one thread: more threads are not faster, and wait for each other if other
programs run."""


class Query(BaseModel):
    """One user: liked and disliked items, or the history of both with relevances; all oldest first."""

    model_config = ConfigDict(extra="forbid")  # refuses misspelt keys, which would be ignored

    liked: list[str] = Field(default=[], description="raw item ids that the user likes")
    disliked: list[str] = Field(default=[], description="raw item ids that the user dislikes")
    history: list[list[str]] = Field(
        default=[], description="[raw item id, relevance] of each interaction, instead of liked and disliked"
    )
    top_k: int = Field(default=10, ge=1, description="length of the list")
    gamma: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="weight of the subtracted score as next dislike; 0: off; default: evaluation.gamma of the training",
    )

    @field_validator("liked", "disliked", "history", mode="before")
    @classmethod
    def _as_text(cls, entries: Any) -> Any:
        """Numbers as text: ids are often numbers, and MLflow has no type for a list of texts and numbers."""
        if isinstance(entries, list):
            return [cls._as_text(entry) for entry in entries]
        is_number = isinstance(entries, (int, float)) and not isinstance(entries, bool)
        return str(entries) if is_number else entries

    @model_validator(mode="after")
    def _require_history(self) -> "Query":
        if self.history and (self.liked or self.disliked):
            raise ValueError("give history, or liked and disliked, not both")
        for entry in self.history:
            if len(entry) != 2 or not _is_number(entry[1]):
                raise ValueError(f"history has {entry!r}; its entries must be [item, relevance], relevance a number")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_short(cls, content: Any, validate: ModelWrapValidatorHandler["Query"]) -> "Query":
        """Tells a client only what is wrong; MLflow would list all fields. Defined last, to wrap all checks."""
        try:
            return validate(content)
        except ValidationError as error:
            told = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()]
            raise MlflowException.invalid_parameter_value("; ".join(told)) from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Answer(BaseModel):
    """The list for one user."""

    items: list[str] = Field(description="raw item ids, best first, without the given ones")
    scores: list[float]
    unknown: list[str] = Field(description="given items that the model does not know")
    popular: bool = Field(description="whether popular items are listed, because the model knew no item that it reads")


class ServedModel(mlflow.pyfunc.PythonModel):
    """list[Query] -> list[Answer], by loaded_model.Model."""

    def load_context(self, context: Any) -> None:
        self.model = Model(load_exported(Path(context.artifacts["exported"])))

    def predict(  # type: ignore[override]  # MLflow reads the hints
        self, model_input: list[Query], params: dict[str, Any] | None = None
    ) -> list[Answer]:
        for query in model_input:
            if told := refusal_of_gamma(self.model, query):
                raise MlflowException.invalid_parameter_value(told)  # the server tells the reasons of no other errors
        return answers_to(self.model, model_input)


def refusal_of_gamma(model: Model, query: Query) -> str:
    """What is wrong with the gamma of a query for this model; "" if nothing."""
    try:
        require_gamma(model.exported.model, model.exported.gamma(query.gamma))
    except InputError as error:
        return str(error)
    return ""


def parsed_query(content: object) -> Query:
    """Raises InputError that says what is wrong."""
    try:
        return Query.model_validate(content)
    except MlflowException as error:
        raise InputError(error.message) from error


def answers_to(model: Model, queries: Sequence[Query]) -> list[Answer]:
    """The answer to each query."""
    with torch_threads(1 if len(queries) * len(model.item_ids) <= SMALL_CALL else torch.get_num_threads()):
        answers: list[Answer | None] = [None] * len(queries)
        of_queries = [model.exported.gamma(query.gamma) for query in queries]
        for gamma in sorted(set(of_queries)):
            places = [place for place, own in enumerate(of_queries) if own == gamma]
            for place, answer in zip(places, _answers(model, [queries[p] for p in places], gamma), strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]


def _answers(model: Model, queries: Sequence[Query], gamma: float) -> list[Answer]:
    users = [
        Feedback(q.liked, q.disliked, [(item, float(relevance)) for item, relevance in q.history]) for q in queries
    ]
    found = model.lists(users, [query.top_k for query in queries], gamma)
    return [Answer(items=f.items, scores=f.scores, unknown=f.unknown, popular=f.is_popular) for f in found]


def save_model(directory: Path, exported: Exported) -> None:
    """Writes a model into `directory`, in MLflow's format, with signature and input example."""
    settings = exported.settings
    about = {"model": settings.model, "dataset": settings.dataset, "data_digest": exported.data_digest}
    with replaced_directory(directory) as draft, scratch_directory(draft_of(directory, "exported")) as scratch:
        files = scratch / "exported"
        write_exported(files, exported)
        with zipfile.ZipFile(files / CODE, "w", zipfile.ZIP_DEFLATED) as archive:  # files are sent one by one
            for file in sorted(PACKAGE.rglob("*.py")):
                archive.write(file, Path(PACKAGE.name) / file.relative_to(PACKAGE))
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                path=draft,
                python_model=str(PACKAGE / "inference" / "pyfunc_script.py"),
                artifacts={"exported": str(files)},
                input_example=[Query(liked=exported.raw_ids[:EXAMPLES], top_k=5).model_dump()],
                pip_requirements=[f"mlflow=={mlflow.__version__}", *map(_pinned, REQUIREMENTS)],
                metadata=about,
            )


def _pinned(package: str) -> str:
    return f"{package}=={metadata.version(package).partition('+')[0]}"
