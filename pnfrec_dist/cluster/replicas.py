"""Answers requests over HTTP by several replicas (Ray Serve). Requests that come together are answered together.

POST /invocations   a request
GET  /ping          200 as soon as the replica has its model
GET  /metrics       Prometheus metrics of all replicas (request_counts.py)
"""

import asyncio
import contextlib
import functools
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private import replica  # not Ray's public API; see _listen_on_loopback
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from starlette.responses import Response

from pnfrec_dist.cli import HOST
from pnfrec_dist.cluster.environment import SINGLE_NODE
from pnfrec_dist.cluster.event_board import beside_driver
from pnfrec_dist.cluster.request_counts import CountBoard, Counts
from pnfrec_dist.cluster.session import ray_cluster
from pnfrec_dist.cluster.worker_plan import WorkerOptions

Answer = Callable[[list[bytes]], list[tuple[int, bytes]]]
"""Bodies of requests -> status and content of each answer. It is called in one thread at a time."""
Load = Callable[[str], Answer]
"""The name of a model -> how it answers; runs in each replica."""
APPLICATION = "pnfrec"
MAX_BATCH = 64
"""Most requests that are answered together."""
MAX_WAITING = 1_000
"""Requests that a replica has accepted; more wait in the HTTP server."""
BATCH_SECONDS = 0.002
"""How long the first request of a batch waits for others."""
COUNT_SECONDS = 1.0
JSON, TEXT = "application/json", "text/plain; version=0.0.4"


@dataclass(frozen=True)
class ServerOptions:
    """Where replicas run and listen."""

    replicas: int
    host: str
    port: int
    token: str = ""
    """each request to /invocations and /metrics must have it; empty: none is needed"""
    ray_address: str = ""
    """empty: Ray starts on this machine"""


class Replica:
    """One replica: a model, and the counts of its requests."""

    def __init__(self, load: Load, token: str, board: Any) -> None:
        if os.environ.get(SINGLE_NODE) == "0":
            _listen_on_loopback()
        self.load, self.token, self.board = load, token, board
        self.name, self.model, self.counts = secrets.token_hex(4), "", Counts()
        self.answer: Answer | None = None
        self.reporting: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Loads another model while the one before goes on answering. If it cannot be loaded, that one stays, and
        the counts say so; the first model must be loaded."""
        if config["model"] == self.model:
            return
        try:
            self.answer = await asyncio.to_thread(self.load, config["model"])
        except Exception:
            if self.answer is None:
                raise
            logging.getLogger("ray.serve").exception("cannot load %s; %s stays", config["model"], self.model)
            return
        self.model = config["model"]
        self.reporting = self.reporting or asyncio.create_task(self._report())

    async def __call__(self, request: Request) -> Response:
        path = request.url.path
        if path == "/ping":
            return Response(b"\n", media_type="text/plain")
        if self.token and not hmac.compare_digest(request.headers.get("authorization", ""), f"Bearer {self.token}"):
            return _refused(401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN")
        if path == "/metrics":
            await self._add()
            return Response(await self.board.text.remote(), media_type=TEXT)
        if path != "/invocations":
            return _refused(404, f"there is no {path}; there are /invocations, /ping and /metrics")
        if request.method != "POST":
            return _refused(405, "send requests with POST")
        began = time.perf_counter()
        status, content = await self._batched(await request.body())
        self.counts.see(status, time.perf_counter() - began)
        return Response(content, status_code=status, media_type=JSON, headers={"pnfrec-model": self.model})

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def _batched(self, bodies: list[bytes]) -> list[tuple[int, bytes]]:
        assert self.answer is not None
        self.counts.batches.see(len(bodies))
        return await asyncio.to_thread(self.answer, bodies)

    async def _report(self) -> None:
        while True:
            await self._add()
            await asyncio.sleep(COUNT_SECONDS)

    async def _add(self) -> None:
        counts, self.counts = self.counts, Counts()
        with contextlib.suppress(RayError):
            await self.board.add.remote(self.name, self.model, counts)


def _listen_on_loopback() -> None:
    """Each replica opens a port for other deployments, on all addresses of the machine; Ray has no setting for it."""
    if not hasattr(replica.add_port_to_grpc_server, "__wrapped__"):
        listen = replica.add_port_to_grpc_server

        @functools.wraps(listen)
        def on_loopback(server: Any, address: str) -> int:
            return listen(server, address.replace("[::]", HOST))

        replica.add_port_to_grpc_server = on_loopback


def _refused(status: int, message: str) -> Response:
    return Response(f'{{"message": "{message}"}}'.encode(), status_code=status, media_type=JSON)


@contextlib.contextmanager
def running_replicas(load: Load, model: str, options: ServerOptions) -> Iterator[Callable[[str], dict[str, int]]]:
    """Runs the replicas until the context ends. Yields a function that gives all of them another model, while requests
    go on, and returns how many replicas then have which model: one that cannot load it keeps its own.

    Raises RayServeException if the replicas cannot load the first model.
    """
    with ray_cluster(WorkerOptions(num_workers=options.replicas, address=options.ray_address)) as nodes:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        share = min(1.0, sum(node.cpus for node in nodes) / options.replicas)
        decorated: Any = serve.deployment(Replica)
        deployment = decorated.options(
            name=APPLICATION,
            num_replicas=options.replicas,
            max_ongoing_requests=MAX_WAITING,
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_timeout_s=10,
            ray_actor_options={"num_cpus": share},
        )
        board = beside_driver(CountBoard)
        bound = (load, options.token, board)

        def give(reference: str) -> dict[str, int]:
            configured = deployment.options(user_config={"model": reference})
            serve.run(configured.bind(*bound), name=APPLICATION, route_prefix="/", _local_testing_mode=False)
            time.sleep(2 * COUNT_SECONDS)  # each replica has told its model since
            found: dict[str, int] = ray.get(board.running.remote())
            return found

        where = HTTPOptions(host=options.host, port=options.port)
        serve.start(proxy_location="EveryNode" if options.ray_address else "HeadOnly", http_options=where)
        try:
            give(model)
            yield give
        finally:
            if options.ray_address:  # otherwise Ray ends, and all with it
                serve.delete(APPLICATION)
