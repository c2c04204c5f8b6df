"""A model served over HTTP by python -m pnfrec_dist.serve."""

import contextlib
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.mlflow_server import free_port
from pnfrec_dist.cli import require_free

ROOT = Path(__file__).parents[2]


@dataclass
class Served:
    """A run whose model is being served."""

    run_dir: Path
    port: int
    greeting: list[str]

    def ask(self, content: object) -> tuple[int, Any]:
        """Status and content of the answer."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        url, head = f"http://127.0.0.1:{self.port}/invocations", {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, head), timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@contextlib.contextmanager
def serving(run_dir: Path) -> Iterator[Served]:
    """Serves the model of a run until the context ends; then the command must end with 0 and free its port."""
    port = free_port()
    line = [sys.executable, "-m", "pnfrec_dist.serve", "--run", str(run_dir), "--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines = list[str]()
    while not lines or not lines[-1].startswith("curl"):
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended: {lines}"
    yield Served(run_dir, port, lines)
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(30) == 0
    require_free(port)
