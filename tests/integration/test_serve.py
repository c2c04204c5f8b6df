"""A model served over HTTP, as users start it: the same lists as in process, and readable errors."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from helpers.mlflow_server import free_port
from helpers.served import Served, serving
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist import serve
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.training.run_directory import Run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("serve")
    data = open_prepared(prepared_writer(directory / "prepared" / "tiny"))
    run = Run(directory / "run", {}, data.manifest.digest)
    run.write()
    checkpoint = trained(data, SETTINGS, run.directory)
    save_model(run.directory / "model", of_checkpoint(checkpoint, SETTINGS, data))
    with serving(run.directory) as found:
        yield found


def test_the_greeting_is_a_request_that_is_answered(served: Served) -> None:
    command = shlex.split(served.greeting[-1])
    assert command[0] == "curl" and command[2] == f"http://127.0.0.1:{served.port}/invocations"
    status, content = served.ask(command[-1].encode())
    assert status == 200 and len(content["predictions"][0]["items"]) == 5


def test_answers_equal_those_in_process(served: Served) -> None:
    model = mlflow.pyfunc.load_model(str(served.run_dir / "model"))
    queries: list[dict[str, Any]] = [
        {"liked": ["1", "2"], "disliked": ["5"], "top_k": 4},
        {"liked": ["1", "2"], "disliked": ["5"], "gamma": 0.5},
        {"history": [["3", 5], ["1", 2.0], ["what", 4]], "top_k": 12},
        {"liked": ["unknown", "7"]},
        {"disliked": ["4"]},
        {},
    ]
    expected = [answer.model_dump() for answer in model.predict(queries)]
    assert served.ask({"inputs": queries}) == (200, {"predictions": expected})
    for query, answer in zip(queries, expected, strict=True):
        (alone,) = served.ask({"inputs": [query]})[1]["predictions"]
        assert alone["items"] == answer["items"] and alone["unknown"] == answer["unknown"]
    assert expected[2]["unknown"] == ["what"] and expected[-1]["popular"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "valid JSON"),
        ({"queries": []}, "inputs"),
        ({"inputs": [{"liked": ["1"], "top_k": 0}]}, "top_k"),
        ({"inputs": [{"liked": "1"}]}, "liked"),
        ({"inputs": [{"likes": ["1"]}]}, "likes"),
        ({"inputs": [{"liked": ["1"], "history": [["1", 5]]}]}, "give history, or liked and disliked, not both"),
        ({"inputs": [{"history": [["1", "much"]]}]}, "entries must be [item, relevance], relevance a number"),
    ],
)
def test_a_wrong_request_is_answered_with_its_reason(served: Served, content: object, message: str) -> None:
    status, answer = served.ask(content)
    assert status == 400 and message in answer["message"], answer
    assert "Traceback" not in answer["message"] and len(answer["message"]) < 400, "the reason alone"


def test_what_cannot_be_served_is_refused(served: Served, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--port is {served.port}, which cannot be used"):
        serve.main(["--run", str(served.run_dir), "--port", str(served.port)])
    (checkpoint,) = (served.run_dir / "checkpoints").glob("step-*")
    with pytest.raises(InputError, match="has only a checkpoint and no model to serve"):
        serve.main(["--run", str(checkpoint), "--port", str(free_port())])
    with pytest.raises(InputError, match="there is no directory"):
        serve.main(["--run", "runs/none", "--port", str(free_port())])
