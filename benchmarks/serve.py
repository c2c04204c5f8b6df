"""python -m benchmarks.serve: times 1,000 requests of one user each, in process and over HTTP (make bench-recommend).

The model has ML-1M's size and random weights. Each user likes 1 to 50 items and dislikes 1 to 50.
"""

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np

from pnfrec_dist.config.settings import LossSettings, Settings
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.http_server import HOST
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.training.initial_model import build_model

ITEMS, REQUESTS, WARM_UP = 3412, 1000, 20

Query = dict[str, Any]


def saved_model(directory: Path) -> Path:
    """A model with d = 64 and two encoders, in MLflow's format."""
    settings = replace(Settings(), loss=LossSettings(0.45, 0.25))
    raw_ids = [str(item) for item in range(1, ITEMS + 1)]
    save_model(
        directory / "model",
        Exported(settings, build_model(ITEMS, settings).eval(), raw_ids, np.arange(ITEMS + 1), 4.0, ""),
    )
    return directory / "model"


def queries() -> list[Query]:
    rng = np.random.default_rng(1)
    sides = [[rng.choice(ITEMS, rng.integers(1, 51), replace=False) + 1 for _ in range(2)] for _ in range(REQUESTS)]
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


def over_http(model: Path, asked: list[Query]) -> np.ndarray:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "pnfrec_dist.serve", "--run", str(model), "--port", str(port)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        while not (said := server.stdout.readline()).startswith("curl"):
            assert said, "the server did not start"
        client = http.client.HTTPConnection(HOST, port)

        def answer(query: Query) -> None:
            body = json.dumps({"inputs": [query]})
            client.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            answered = client.getresponse()
            assert answered.read() and answered.status == 200

        try:
            return waits(asked, answer)
        finally:
            client.close()
            server.terminate()
            server.communicate()


def main() -> None:
    asked = queries()
    with tempfile.TemporaryDirectory() as scratch:
        model = saved_model(Path(scratch))
        served = mlflow.pyfunc.load_model(str(model))
        in_process = waits(asked, lambda query: served.predict([query]))
        rows = [("in process", in_process), ("over HTTP", over_http(model, asked))]
    what = f"{REQUESTS:,} requests of one user, {ITEMS:,} items, d = 64"
    lines = [[name, *(f"{ms:.1f} ms" for ms in [*np.percentile(found, [50, 95]), found.max()])] for name, found in rows]
    print(markdown_table([what, "p50", "p95", "slowest"], lines))


if __name__ == "__main__":
    main()
