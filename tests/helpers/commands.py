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
"""Of a user's shell: what the tests set for themselves is left out."""


def called(main: Callable[[Sequence[str]], int | None], directory: Path, *args: str) -> str:
    """What a command prints whose main(args) is called here, in `directory`, and ends well.

    For tests of what a command does. Those of its process (exit codes, signals, stderr) start one.
    """
    held = io.BytesIO()
    printed = io.TextIOWrapper(held, "utf-8", write_through=True)  # in a StringIO tyro takes no box for one
    with mock.patch.dict(os.environ), contextlib.chdir(directory), contextlib.redirect_stdout(printed):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        code = main(args)
    text = held.getvalue().decode()
    assert not code, text
    return text


def started(directory: Path, module: str, *args: str) -> subprocess.CompletedProcess[str]:
    """python -m module, run to its end in `directory`."""
    line = [sys.executable, "-m", module, *args]
    return subprocess.run(line, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False)
