"""Requests answered together: each as alone, and a wrong one harms no other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference import request_handler
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.loaded_model import Model
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.inference.request_handler import load_handler


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    place = tmp_path_factory.mktemp("handler")
    data = open_prepared(prepared_writer(place / "tiny"))
    save_model(place / "model", of_checkpoint(trained(data, SETTINGS, place / "run"), SETTINGS, data))
    return place / "model"


def body(*queries: Any) -> bytes:
    return json.dumps({"inputs": queries}).encode()


def test_each_request_is_answered_as_alone(directory: Path) -> None:
    answer = load_handler(str(directory))
    bodies = [
        body({"liked": ["1", "2"], "top_k": 4}, {"liked": [3], "gamma": 0.5}),
        body({"disliked": ["4"]}),
        b"{",
        body({"likes": ["1"]}),
        body(),
        body({"history": [["3", 5], ["what", 4]], "top_k": 12}),
    ]
    together = answer(bodies)
    assert [status for status, _ in together] == [200, 200, 400, 400, 200, 200]
    for one, (status, content) in zip(bodies, together, strict=True):
        ((alone, expected),) = answer([one])
        found, wanted = json.loads(content), json.loads(expected)
        assert status == alone and found.keys() == wanted.keys()
        for answered, as_alone in zip(found.get("predictions", []), wanted.get("predictions", []), strict=True):
            assert answered["items"] == as_alone["items"] and answered["unknown"] == as_alone["unknown"]
            assert answered["scores"] == pytest.approx(as_alone["scores"], rel=1e-5)
    assert len(json.loads(together[0][1])["predictions"]) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff", "not valid JSON"),
        (b"[]", "the request must be"),
        (b'{"inputs": {}}', "the request must be"),
        (b'{"inputs": [], "more": 1}', "the request must be"),
        (body("x"), "valid dictionary"),
        (body({"top_k": 0}), "top_k"),
        (body({"gamma": -1}), "gamma"),
        (body({"liked": ["1"], "history": [["1", 5]]}), "give history, or liked and disliked, not both"),
    ],
)
def test_a_wrong_request_is_answered_with_its_reason(directory: Path, content: bytes, told: str) -> None:
    ((status, found),) = load_handler(str(directory))([content])
    assert status == 400 and told in json.loads(found)["message"]


def test_a_fault_of_this_program_does_not_end_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = load_handler(str(directory))

    def fails(_: Model, __: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(request_handler, "answers_to", fails)
    found = answer([body({"liked": ["1"]}), b"{"])
    assert [status for status, _ in found] == [500, 400] and b"out of order" in found[0][1]


def test_what_cannot_be_served_is_refused(directory: Path) -> None:
    (checkpoint,) = (directory.parent / "run" / "checkpoints").glob("step-*")
    with pytest.raises(InputError, match="has only a checkpoint and no model to serve"):
        load_handler(str(checkpoint))
    with pytest.raises(InputError, match="there is no directory"):
        load_handler("runs/none")
