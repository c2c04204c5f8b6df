"""The project's commands: called in this process, or started as a user starts them."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from pnfrec_dist.cluster.environment import SINGLE_NODE

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") and k != SINGLE_NODE} | {
    "PYTHONUNBUFFERED": "1"
}
"""A user's environment, without the variables that the tests set."""


def called(main: Callable[[Sequence[str]], int | None], directory: Path, *args: str) -> str:
    """Calls a command's main(args) in `directory`; returns what it prints. The exit code must be 0.

    For tests of what a command does. Tests of exit codes, signals and stderr start a process instead.
    """
    held = io.BytesIO()
    printed = io.TextIOWrapper(held, "utf-8", write_through=True)  # tyro prints no boxes into a StringIO
    with mock.patch.dict(os.environ), contextlib.chdir(directory), contextlib.redirect_stdout(printed):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        code = main(args)
    text = held.getvalue().decode()
    assert not code, text
    return text


def started(directory: Path, module: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs python -m module to its end in `directory`."""
    line = [sys.executable, "-m", module, *args]
    return subprocess.run(line, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False)
