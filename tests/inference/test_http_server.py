"""Checks and messages of the server. The server itself is tested in integration/test_serve.py."""

import json
import shlex
import socket
from pathlib import Path

import pytest

from pnfrec_dist.cli import require_free
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.http_server import EXAMPLE, _greeting, serve


def test_a_port_that_is_taken_is_refused_before_the_model_is_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"--port is {port}, which cannot be used"):
            serve("runs/none", port)
    require_free(port)
    with pytest.raises(InputError, match="--port is 70000, which cannot be used"):
        require_free(70_000)
    with pytest.raises(InputError, match="there is no directory 'runs/none'"):
        serve("runs/none", port)


def test_the_greeting_is_a_request_that_a_shell_takes(tmp_path: Path) -> None:
    (tmp_path / EXAMPLE).write_text(json.dumps({"inputs": [{"liked": ["it's", "2"], "top_k": 5, "gamma": 0}]}))
    url, command = _greeting(tmp_path, 5001).splitlines()
    assert url.startswith("http://127.0.0.1:5001/invocations")
    words = shlex.split(command)
    assert json.loads(words[-1]) == {"inputs": [{"liked": ["it's", "2"], "top_k": 5}]}
