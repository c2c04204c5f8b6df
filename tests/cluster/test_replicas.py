"""One replica, called without Ray: what it answers, batches, and how it takes up another model."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from pnfrec_dist.cluster.replicas import MAX_WAITING, Answer, Replica
from pnfrec_dist.cluster.request_counts import CountBoard, Counts

TOKEN = "secret"
LOOP = asyncio.new_event_loop()
"""Ray's batching stays in the loop in which it began, and does not end."""


@pytest.fixture(autouse=True)
def in_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's batching asks for the limit of requests of the replica in which it runs."""
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=MAX_WAITING))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)


class BoardStub:
    """A CountBoard whose methods are called as those of an actor."""

    def __init__(self) -> None:
        self.board = CountBoard()
        self.add, self.text = self._Method(self.board.add), self._Method(self.board.text)

    class _Method:
        def __init__(self, method: Callable[..., Any]) -> None:
            self.method = method

        async def remote(self, *args: Any) -> Any:
            return self.method(*args)


def load(model: str) -> Answer:
    """A model that answers with its name and the size of the batch."""
    if model == "broken":
        raise ValueError("no such model")

    def answer(bodies: list[bytes]) -> list[tuple[int, bytes]]:
        return [
            (400 if body == b"wrong" else 200, f"{model} {body.decode()} {len(bodies)}".encode()) for body in bodies
        ]

    return answer


def request(path: str = "/invocations", body: bytes = b"", method: str = "POST", token: str = "") -> Request:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


def run(work: Callable[[Replica, CountBoard], Awaitable[None]], token: str = "") -> None:
    async def main() -> None:
        stub = BoardStub()
        replica = Replica(load, token, stub)
        await replica.reconfigure({"model": "one"})
        await work(replica, stub.board)

    LOOP.run_until_complete(main())


def status_of(response: Response) -> int:
    return response.status_code


def test_requests_that_come_together_are_answered_together_and_in_order() -> None:
    async def work(replica: Replica, board: CountBoard) -> None:
        bodies = [b"a", b"wrong", b"c"]
        answers = await asyncio.gather(*[replica(request(body=body)) for body in bodies])
        assert [bytes(a.body) for a in answers] == [b"one a 3", b"one wrong 3", b"one c 3"]
        assert [status_of(a) for a in answers] == [200, 400, 200]
        assert {a.headers["pnfrec-model"] for a in answers} == {"one"}
        metrics = await replica(request("/metrics", method="GET"))
        assert b'pnfrec_requests_total{status="200"} 2.0' in metrics.body
        assert board.counts.batches.total == 3

    run(work)


def test_another_model_is_taken_up_and_one_that_cannot_be_loaded_is_not() -> None:
    async def work(replica: Replica, _: CountBoard) -> None:
        await replica.reconfigure({"model": "broken"})
        assert (await replica(request(body=b"x"))).headers["pnfrec-model"] == "one"
        await replica.reconfigure({"model": "two"})
        answer = await replica(request(body=b"x"))
        assert bytes(answer.body) == b"two x 1" and answer.headers["pnfrec-model"] == "two"

    run(work)
    with pytest.raises(ValueError, match="no such model"):  # the first model must be loaded
        LOOP.run_until_complete(Replica(load, "", BoardStub()).reconfigure({"model": "broken"}))


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request(body=b"x"), 401),
        (request(body=b"x", token="wrong"), 401),
        (request("/metrics", method="GET"), 401),
        (request(body=b"x", token=TOKEN), 200),
        (request("/ping", method="GET"), 200),
        (request("/else", token=TOKEN), 404),
        (request(method="GET", token=TOKEN), 405),
    ],
)
def test_what_is_refused(asked: Request, status: int) -> None:
    async def work(replica: Replica, board: CountBoard) -> None:
        answer = await replica(asked)
        assert status_of(answer) == status
        if status >= 400:
            assert set(json.loads(bytes(answer.body))) == {"message"}
        await replica.reconfigure({"model": "one"})
        assert board.counts.of_status == Counts().of_status or status == 200

    run(work, TOKEN)
