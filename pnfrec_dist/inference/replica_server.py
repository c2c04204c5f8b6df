"""Serves a trained model by several replicas, and takes up a moved alias (serve --replicas)."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from pnfrec_dist.cli import require_free
from pnfrec_dist.cluster.replicas import ServerOptions, running_replicas
from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.files.text import counted
from pnfrec_dist.inference.request_handler import load_handler
from pnfrec_dist.tracking.address import tracking_uri
from pnfrec_dist.tracking.model_registry import registered_name


def serve_replicas(reference: str, options: ServerOptions, refresh_seconds: float) -> int:
    """Serves until a signal, and returns the exit code. reference: see open_trained. An alias of a registered model is
    looked up again every refresh_seconds.

    Raises InputError if there is no such model or the port is taken.
    """
    if not options.ray_address:
        require_free(options.port)
    model = resolved(reference)
    load_handler(model)  # what is wrong with the model is told here, in one line
    print(f"starting {counted(options.replicas, 'replica')} of {model}", flush=True)
    with contextlib.suppress(KeyboardInterrupt), running_replicas(load_handler, model, options) as give:
        url = f"http://{options.host}:{options.port}"
        print(f"{url}/invocations  {url}/ping  {url}/metrics  (Ctrl-C ends it)", flush=True)
        while True:
            time.sleep(refresh_seconds)
            model = _taken_up(reference, model, give)
    return 0


def _taken_up(reference: str, model: str, give: Callable[[str], dict[str, int]]) -> str:
    """Gives the replicas the version that the reference means now, if it is another one; returns what they have."""
    try:
        newest = resolved(reference)
        if newest == model:
            return model
        load_handler(newest)
    except InputError as error:
        print(f"warning: {first_line(error)}; {model} stays", flush=True)
        return model
    began = time.monotonic()
    for other, replicas in give(newest).items():
        if other != newest:
            told = f"{counted(replicas, 'replica')} of {other} cannot load {newest}"
            print(f"warning: {told}; the reason is in the log of Ray Serve", flush=True)
    print(f"{newest} instead of {model}, taken up in {time.monotonic() - began:.0f} s", flush=True)
    return newest


def resolved(reference: str) -> str:
    """The directory, or the name of one version in MLflow, that a reference means now."""
    directory = Path(reference).expanduser()
    if directory.is_dir() or not re.fullmatch(r"(models:/)?[^/:@]+(@[^/:@]+)?", reference):
        return str(directory.resolve()) if directory.is_dir() else reference
    return registered_name(reference, tracking_uri())
