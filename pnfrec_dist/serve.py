"""The command python -m pnfrec_dist.serve: a trained model behind MLflow's HTTP server, on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from pnfrec_dist.cli import Parser, run_command
from pnfrec_dist.errors import InputError, RunError

PROG = "python -m pnfrec_dist.serve"
HOST, PORT = "127.0.0.1", 5001
EXAMPLE = "serving_input_example.json"


def main(args: Sequence[str]) -> int:
    """Serves until it is stopped, and returns the exit code. Raises InputError for wrong input."""
    parser = Parser(
        prog=PROG,
        allow_abbrev=False,
        description=f"Serves a trained model on {HOST}, to this machine alone, until Ctrl-C.",
        epilog=f"Example: {PROG} --run models:/pnfrec-dist-ml1m@best",
    )
    parser.add_argument(
        "--run",
        required=True,
        help="the model: a run's directory, an MLflow run id, models:/<name>/<version>, models:/<name>@<alias>, or the "
        "name of a registered model",
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    found = parser.parse_args(args)
    require_free(found.port)
    # This imports torch, which takes too long for --help or a typo.
    from pnfrec_dist.inference.trained_model import MLMODEL, trained_directory

    with tempfile.TemporaryDirectory(prefix="pnfrec-") as scratch:
        directory = trained_directory(found.run, Path(scratch))
        if not (directory / MLMODEL).is_file():
            raise InputError(
                f"{found.run} has no model to serve, a checkpoint alone; name a run whose training has ended"
            )
        with contextlib.suppress(KeyboardInterrupt), _server(directory, found.port) as server:
            _wait_until_ready(server, found.port)
            print(_greeting(directory, found.port), flush=True)
            server.wait()
            raise RunError(f"the server ended by itself (exit code {server.returncode}); the reason stands above")
    return 0


def require_free(port: int) -> None:
    try:
        with socket.create_server((HOST, port)):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(f"--port is {port}, which cannot be used ({error}); name another one") from error


@contextlib.contextmanager
def _server(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """mlflow models serve, in a session of its own: Ctrl-C reaches it through this process, as SIGTERM does."""
    print(f"loading {directory} (some 15 seconds)", flush=True)
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
    raise RunError(f"the server did not start (exit code {server.returncode}); the reason stands above")


def _greeting(directory: Path, port: int) -> str:
    (query,) = json.loads((directory / EXAMPLE).read_text(encoding="utf-8"))["inputs"]
    content = json.dumps({"inputs": [{"liked": query["liked"], "top_k": query["top_k"]}]}).replace("'", r"\u0027")
    url = f"http://{HOST}:{port}/invocations"
    return f"{url}  (Ctrl-C ends it)\ncurl -s {url} -H 'Content-Type: application/json' -d '{content}'"


if __name__ == "__main__":
    run_command(main)
