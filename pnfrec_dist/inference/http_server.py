"""Serves a trained model with MLflow's HTTP server, on this machine only."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pnfrec_dist.cli import HOST, require_free
from pnfrec_dist.errors import InputError, RunError

PORT = 5001
EXAMPLE = "serving_input_example.json"


def serve(reference: str, port: int) -> int:
    """Serves a model until Ctrl-C, and returns the exit code. reference: see open_trained.

    Raises InputError if there is no such model or the port is taken, RunError if the server ends unexpectedly.
    """
    require_free(port)
    # This imports torch, which is slow, so the port is checked first.
    from pnfrec_dist.inference.trained_model import MLMODEL, trained_directory

    with tempfile.TemporaryDirectory(prefix="pnfrec-") as scratch:
        directory = trained_directory(reference, Path(scratch))
        if not (directory / MLMODEL).is_file():
            raise InputError(f"{reference} has only a checkpoint and no model to serve; name a run that has ended")
        with contextlib.suppress(KeyboardInterrupt), _server(directory, port) as server:
            _wait_until_ready(server, port)
            print(_greeting(directory, port), flush=True)
            server.wait()
            raise RunError(f"the server ended unexpectedly (exit code {server.returncode}); see the reason above")
    return 0


@contextlib.contextmanager
def _server(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """mlflow models serve, in its own session: Ctrl-C and SIGTERM reach it only through this process."""
    print(f"loading {directory} (about 15 seconds)", flush=True)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(directory.resolve())]
    command += ["--env-manager", "local", "--host", HOST, "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # mlflow starts uvicorn by name
    environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/ping", timeout=5):
            return
        time.sleep(0.1)
    raise RunError(f"the server did not start (exit code {server.returncode}); see the reason above")


def _greeting(directory: Path, port: int) -> str:
    (query,) = json.loads((directory / EXAMPLE).read_text(encoding="utf-8"))["inputs"]
    content = json.dumps({"inputs": [{"liked": query["liked"], "top_k": query["top_k"]}]}).replace("'", r"\u0027")
    url = f"http://{HOST}:{port}/invocations"
    return f"{url}  (Ctrl-C ends it)\ncurl -s {url} -H 'Content-Type: application/json' -d '{content}'"
