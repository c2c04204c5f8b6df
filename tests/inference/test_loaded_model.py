"""A trained model called from Python: one user, several as a mapping or a frame, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.loaded_model import FRAME_COLUMNS, Feedback, Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Model:
    directory = tmp_path_factory.mktemp("model")
    data = open_prepared(prepared_writer(directory / "prepared"))
    return Model(of_checkpoint(trained(data, SETTINGS, directory / "run"), SETTINGS, data))


def test_the_forms_of_a_user_mean_the_same(model: Model) -> None:
    """Ids may be numbers; the threshold of the data set, 4, says what is liked."""
    expected = model.recommend(liked=[3, 5], disliked=["7"], k=4)
    assert len(expected.items) == 4 and not {"3", "5", "7"} & set(expected.items)
    frame = pd.DataFrame({"user_id": ["u"] * 3, "item_id": [3, 7, 5], "is_liked": [True, False, True]})
    for users in (
        {"u": {"liked": ["3", "5"], "disliked": ["7"]}},
        {"u": Feedback(["3", "5"], ["7"])},
        {"u": [("3", 4), ("7", 3.9), ("5", 5)]},
        {"u": {"liked": np.array([3, 5]), "disliked": np.array([7.0])}},
        frame.astype({"item_id": float, "is_liked": int}),
        frame.astype({"is_liked": "boolean"}),
        frame,
    ):
        assert model.recommend(users=users, k=4) == {"u": expected}


def test_what_the_model_does_not_know_is_told(model: Model) -> None:
    found = model.recommend(liked=["nowhere", "3", "nowhere"], k=2)
    assert found.unknown == ["nowhere"] and not found.is_popular
    assert model.recommend(liked=["nowhere"], k=2).is_popular
    assert len(model.recommend(liked=["3"], k=99).items) == len(model.item_ids) - 1
    assert model.recommend(users={}) == {}
    assert repr(model) == f"Model({model.exported.settings.model}, {len(model.item_ids)} items)"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        *(({"liked": ["3"], "k": k}, "it must be a whole number >= 1") for k in (0, 1.5, "5", None, True)),
        *(({"gamma": gamma}, "it must be a finite number >= 0") for gamma in (-1, math.nan, math.inf, "x")),
        *(({"liked": ids}, "is no list; item ids must be a list") for ids in ("3", b"3", 3)),
        ({"liked": ["3"], "users": {"u": []}}, "give users, or liked and disliked, not both"),
        ({"users": [1]}, "users is a list; it must be a mapping or a DataFrame"),
        ({"users": pd.DataFrame({"user_id": [1]})}, "the DataFrame has no column 'item_id'"),
        ({"users": {"u": {"likes": ["3"]}}}, "the feedback of user 'u' cannot be read"),
        ({"users": {"u": [("3", "x")]}}, "the feedback of user 'u' cannot be read"),
        ({"users": {"u": ["34", "56"]}}, "the feedback of user 'u' cannot be read"),
        ({"users": {"u": [("3", math.nan)]}}, "the feedback of user 'u' cannot be read"),
        ({"users": {"u": {"liked": ["3"], "disliked": None}}}, "the feedback of user 'u' cannot be read"),
        (
            {"users": pd.DataFrame([[1, 3, True, 4]], columns=pd.Index([*FRAME_COLUMNS, "item_id"]))},
            "several columns of one name",
        ),
        *(
            ({"users": pd.DataFrame([[1, 3, value]], columns=pd.Index(FRAME_COLUMNS))}, "it must be true or false")
            for value in ("True", "no", 5, -1, math.nan, pd.NA, None)
        ),
    ],
)
def test_what_is_of_no_known_form_is_one_line(model: Model, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        model.recommend(**asked)
    assert "\n" not in str(caught.value)
