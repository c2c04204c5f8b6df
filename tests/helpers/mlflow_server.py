"""A real MLflow server on loopback."""

import contextlib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from helpers.commands import ENVIRONMENT as OF_A_USER
from helpers.waiting import wait_until

ENVIRONMENT = OF_A_USER | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def is_up(port: int) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        return True
    return False


@contextlib.contextmanager
def mlflow_server(directory: Path, *more: str) -> Iterator[int]:
    """Yields its port when it answers. The database is mlflow.db in `directory`. more: further arguments."""
    port = free_port()
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", *more]
    with (directory / "server.log").open("w") as log:
        process = subprocess.Popen(line, env=ENVIRONMENT, stdout=log, stderr=log, cwd=directory)
    try:
        wait_until(lambda: is_up(port), unless=lambda: process.poll() is not None)
        yield port
    finally:
        process.terminate()
        process.wait(30)
