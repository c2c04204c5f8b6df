"""python -m benchmarks.serve: times 1,000 requests of one user each, in process and over HTTP (make bench-recommend).

The model has ML-1M's size, or --items, and random weights. Each user likes 1 to 50 items and dislikes 1 to 50.
With --rates, requests come at these rates to `serve --replicas`, whether or not earlier ones are answered; a wait
counts from when a request was due.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np

from pnfrec_dist.config.settings import LossSettings, Settings
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.files.text import counted
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.http_server import HOST
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.training.initial_model import build_model

ITEMS, REQUESTS, WARM_UP = 3412, 1000, 20
CLIENTS = 64
SECONDS = 20

Query = dict[str, Any]


def saved_model(directory: Path, items: int) -> Path:
    """A model with d = 64 and two encoders, in MLflow's format."""
    settings = replace(Settings(), loss=LossSettings(0.45, 0.25))
    raw_ids = [str(item) for item in range(1, items + 1)]
    save_model(
        directory / "model",
        Exported(settings, build_model(items, settings).eval(), raw_ids, np.arange(items + 1), 4.0, ""),
    )
    return directory / "model"


def queries(items: int) -> list[Query]:
    rng = np.random.default_rng(1)
    sides = [[rng.choice(items, rng.integers(1, 51), replace=False) + 1 for _ in range(2)] for _ in range(REQUESTS)]
    return [{"liked": [*map(str, liked)], "disliked": [*map(str, disliked)]} for liked, disliked in sides]


def waits(asked: list[Query], answer: Callable[[Query], object]) -> np.ndarray:
    """Milliseconds of each request, after WARM_UP requests that are not counted."""
    for query in asked[:WARM_UP]:
        answer(query)
    found = []
    for query in asked:
        started = time.perf_counter()
        answer(query)
        found.append(1e3 * (time.perf_counter() - started))
    return np.array(found)


@contextlib.contextmanager
def serving(model: Path, *flags: str) -> Iterator[int]:
    """Serves until the context ends. Yields the port."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "pnfrec_dist.serve", "--run", str(model), "--port", str(port), *flags]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        ready = "http" if flags else "curl"
        while not (said := server.stdout.readline()).startswith(ready):
            assert said, "the server did not start"
        try:
            yield port
        finally:
            server.terminate()
            server.communicate()


def asking(port: int) -> Callable[[Query], object]:
    """A function that sends one request over a connection that stays open."""
    client = http.client.HTTPConnection(HOST, port)

    def answer(query: Query) -> None:
        client.request("POST", "/invocations", json.dumps({"inputs": [query]}), {"Content-Type": "application/json"})
        answered = client.getresponse()
        assert answered.read() and answered.status == 200

    return answer


def at_rate(port: int, asked: list[Query], rate: float) -> tuple[np.ndarray, float]:
    """(milliseconds from when each request was due, answers per second) of SECONDS of requests."""
    count = int(rate * SECONDS)
    waited = np.zeros(count)
    sent = [_as_sent(query) for query in asked]
    places, began = iter(range(count)), time.perf_counter() + 1

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for place in places:  # of all clients together
            due = began + place / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(sent[place % len(sent)])
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
            waited[place] = 1e3 * (time.perf_counter() - due)
        writer.close()

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    asyncio.run(clients())
    return waited, count / (time.perf_counter() - began)


def _as_sent(query: Query) -> bytes:
    """The bytes of a request. Clients share the cores with the server, so they do as little as possible."""
    body = json.dumps({"inputs": [query]}).encode()
    lines = ["POST /invocations HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def rows_at_rates(model: Path, asked: list[Query], rates: list[float], replicas: int) -> list[list[str]]:
    rows = []
    with serving(model, "--replicas", str(replicas)) as port:
        waits(asked, asking(port))  # all processes are warm then
        for rate in rates:
            waited, found = at_rate(port, asked, rate)
            rows.append([f"{counted(replicas, 'replica')}, {rate:g} requests/s", *shown(waited), f"{found:,.0f}"])
    return rows


def shown(waited: np.ndarray) -> list[str]:
    return [f"{ms:.1f} ms" for ms in [*np.percentile(waited, [50, 95]), waited.max()]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ITEMS, help="default: %(default)s")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests per second")
    parser.add_argument("--replicas", type=int, default=2, help="with --rates; default: %(default)s")
    found = parser.parse_args()
    asked = queries(found.items)
    head = [f"requests of one user, {found.items:,} items, d = 64", "p50", "p95", "slowest"]
    with tempfile.TemporaryDirectory() as scratch:
        model = saved_model(Path(scratch), found.items)
        if found.rates:
            print(markdown_table([*head, "answers/s"], rows_at_rates(model, asked, found.rates, found.replicas)))
            return
        served = mlflow.pyfunc.load_model(str(model))
        in_process = waits(asked, lambda query: served.predict([query]))
        with serving(model) as port:
            over_http = waits(asked, asking(port))
    rows = [["in process", *shown(in_process)], ["over HTTP", *shown(over_http)]]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
