"""The exported model makes the same lists as the model itself, from raw ids."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.config.settings import EvaluationSettings, History, LossSettings, Settings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.user_histories import read_users, user_parts
from pnfrec_dist.inference.artifact import Exported, of_checkpoint
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.inference.recommender import Recommender, Users
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.training.checkpoint import load_model
from pnfrec_dist.training.initial_model import build_model


@dataclasses.dataclass
class Case:
    """An exported model, and the model itself."""

    served: Any
    model: PNFRec
    data: PreparedData
    settings: Settings

    def expected(self, read: list[int], disliked: list[int], seen: list[int], k: int, gamma: float = 0.0) -> list[int]:
        users = Users(
            *(Ragged(np.array([0, len(ids)]), np.array(ids, dtype=np.int64)) for ids in (read, disliked, seen))
        )
        likes_V = self.data.item_counts(positive_only=True)
        found = Recommender(self.model, likes_V).rank(users, np.array([0]), k, gamma).items_BK[0].tolist()
        return [item for item in found if item]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> dict[History, Case]:
    """A model that reads positives, one that reads all interactions, and two that read them with signs, of which the
    second has a gamma of its own."""
    directory = tmp_path_factory.mktemp("serving")
    data = open_prepared(prepared_writer(directory / "prepared"))
    found: dict[History, Case] = {}
    histories: tuple[History, ...] = ("positive", "all", "signed", "both")
    for history in histories:
        alpha = 0.0 if history == "all" else 0.45
        encoder = dataclasses.replace(SETTINGS.encoder, history=history)
        terms = ("ce_likes=1",) if history == "both" else ()
        gamma = EvaluationSettings(gamma=0.4 if history == "both" else 0.0)
        loss = LossSettings(alpha, 0.25, terms)
        settings = dataclasses.replace(SETTINGS, encoder=encoder, loss=loss, evaluation=gamma)
        checkpoint = trained(data, settings, directory / history / "run")
        save_model(directory / history / "model", of_checkpoint(checkpoint, settings, data))
        assert sorted(path.name for path in (directory / history).iterdir()) == ["model", "run"], "no drafts are left"
        model = build_model(data.num_items, settings).eval()
        load_model(checkpoint, model)
        found[history] = Case(mlflow.pyfunc.load_model(str(directory / history / "model")), model, data, settings)
    return found


@pytest.mark.parametrize("history", ["positive", "all", "signed"])
def test_the_exported_model_lists_what_the_trained_one_does(cases: dict[History, Case], history: History) -> None:
    """Users with known and unknown items, with more than fit the window, with none; alone and together."""
    case = cases[history]
    users = [["1", "2", "3", "4", "5", "6", "7", "8"], ["9", "what", "3"], [], [str(item) for item in range(1, 13)]]
    queries = [{"liked": liked, "top_k": 5} for liked in users]
    answers = case.served.predict(queries)
    for query, answer in zip(queries, answers, strict=True):
        (alone,) = case.served.predict([query])
        assert alone.items == answer.items and alone.scores == pytest.approx(answer.scores, abs=1e-6)
    for liked, answer in zip(users, answers, strict=True):
        known = [int(raw) for raw in liked if raw.isdigit()]
        assert answer.items == [str(item) for item in case.expected(known, [], known, 5)]
        assert answer.unknown == [raw for raw in liked if not raw.isdigit()]
        assert answer.popular == (not known)


def test_dislikes_are_never_listed_and_count_where_gamma_says(cases: dict[History, Case]) -> None:
    case = cases["positive"]
    for gamma in (0.0, 2.0):
        query = {"liked": ["1", "2"], "disliked": ["5", "6", "x"], "top_k": 12, "gamma": gamma}
        only = {"disliked": ["5", "6"], "top_k": 12, "gamma": gamma}
        answer, of_dislikes = case.served.predict([query, only])
        assert answer.items == [str(item) for item in case.expected([1, 2], [5, 6], [1, 2, 5, 6], 12, gamma)]
        assert answer.unknown == ["x"] and not answer.popular
        assert of_dislikes.items == [str(item) for item in case.expected([], [5, 6], [5, 6], 12, gamma)]
        assert of_dislikes.popular
    queries = [{"liked": ["1", "2"], "disliked": ["5", "6"], "top_k": 12, "gamma": gamma} for gamma in (0.0, 2.0)]
    without, with_them = case.served.predict(queries)
    assert without.scores != with_them.scores, "mixed in one call, each has its own"


def test_a_history_with_relevances_is_split_at_the_threshold(cases: dict[History, Case]) -> None:
    """The threshold is 4. A model that reads all interactions reads them in their order."""
    history = [["3", 5], [1, 2.0], ["what", "4"], ["2", 4], ["7", 1]]
    (answer,) = cases["positive"].served.predict([{"history": history, "top_k": 12}])
    assert answer.items == [str(item) for item in cases["positive"].expected([3, 2], [1, 7], [1, 2, 3, 7], 12)]
    assert answer.unknown == ["what"]
    (answer,) = cases["all"].served.predict([{"history": history, "top_k": 12}])
    assert answer.items == [str(item) for item in cases["all"].expected([3, 1, 2, 7], [1, 7], [1, 2, 3, 7], 12)]
    (answer,) = cases["signed"].served.predict([{"history": history, "top_k": 12, "gamma": 0.5}])
    assert answer.items == [
        str(item) for item in cases["signed"].expected([3, -1, 2, -7], [1, 7], [1, 2, 3, 7], 12, 0.5)
    ]


def test_without_gamma_that_of_the_training_is_used(cases: dict[History, Case]) -> None:
    history = [["3", 5], ["1", 2], ["2", 4], ["7", 1]]
    queries = [{"history": history, "top_k": 12}, *({"history": history, "top_k": 12, "gamma": g} for g in (0.4, 0.0))]
    answers = cases["both"].served.predict(queries)
    assert answers[0] == answers[1] and answers[0].scores != answers[2].scores
    assert answers[0].items == [
        str(item) for item in cases["both"].expected([3, -1, 2, -7], [1, 7], [1, 2, 3, 7], 12, 0.4)
    ]


def test_signs_serve_dislikes_alone(cases: dict[History, Case]) -> None:
    (answer,) = cases["signed"].served.predict([{"disliked": ["5", "6"], "top_k": 12}])
    assert answer.items == [str(item) for item in cases["signed"].expected([-5, -6], [5, 6], [5, 6], 12)]
    assert not answer.popular


def test_an_interrupted_export_leaves_the_old_model(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_prepared(prepared)
    checkpoint = trained(data, SETTINGS, tmp_path / "run")
    save_model(tmp_path / "model", of_checkpoint(checkpoint, SETTINGS, data))
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.pyfunc, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "model", of_checkpoint(checkpoint, SETTINGS, data))
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".model*"))


@pytest.mark.parametrize(
    "query",
    [
        {"liked": ["1"], "top_k": 0},
        {"liked": "1"},
        {"liked": ["1"], "top_k": "many"},
        {"liked": ["1"], "gamma": -1},
        {"likes": ["1"]},
        {"history": [["1"]]},
        {"history": [["1", "liked"]]},
        {"history": [["1", float("nan")]]},
        {"history": "1"},
        {"history": [[None, 4]]},
        {"liked": ["1"], "history": [["1", 5]]},
    ],
)
def test_a_query_that_is_none_is_refused(cases: dict[History, Case], query: dict[str, object]) -> None:
    with pytest.raises(mlflow.MlflowException):
        cases["positive"].served.predict([query])


def test_gamma_is_refused_by_a_model_without_a_negative_encoder(cases: dict[History, Case]) -> None:
    with pytest.raises(mlflow.MlflowException, match="does not predict dislikes"):
        cases["all"].served.predict([{"liked": ["1"], "gamma": 0.5}])


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_one_user_s_answer_is_that_user_s_list_of_the_batch_job(cases: dict[History, Case], gamma: float) -> None:
    """One request with raw ids for each user of the data set."""
    case = cases["positive"]
    raw_ids = case.data.raw_item_ids()
    likes_V = case.data.item_counts(positive_only=True)
    exported = Exported(case.settings, case.model, raw_ids.to_pylist(), likes_V, 4.0, "digest")
    settings = ListSettings(top_k=5, gamma=gamma, keep_seen=False, batch_size=7)
    maker = ListMaker(exported, raw_ids, settings, Filters(), torch.device("cpu"))
    for part in user_parts(case.data):
        users = read_users(part, case.data.num_items)
        batch = maker.make(users).to_pydict()
        for row, user_id in enumerate(users.user_ids.to_pylist()):
            liked, disliked = (
                [str(item) for item in lists.values[lists.offsets[row] : lists.offsets[row + 1]]]
                for lists in (users.positive, users.negative)
            )
            (answer,) = case.served.predict([{"liked": liked, "disliked": disliked, "top_k": 5, "gamma": gamma}])
            places = [place for place, name in enumerate(batch["user_id"]) if name == user_id]
            assert answer.items == [batch["raw_item_id"][place] for place in places]
            assert answer.scores == pytest.approx([batch["score"][place] for place in places], abs=1e-6)


def test_ids_may_be_numbers_and_gamma_is_finite(cases: dict[History, Case]) -> None:
    served = cases["positive"].served
    (text,), (numbers,) = (served.predict([{"liked": ids, "top_k": 4}]) for ids in (["1", "7"], [1, 7]))
    assert text.items == numbers.items
    for wrong in ({"liked": [True]}, {"liked": ["1"], "gamma": float("inf")}, {"liked": ["1"], "gamma": float("nan")}):
        with pytest.raises(Exception, match=r"liked|gamma"):
            served.predict([wrong])
