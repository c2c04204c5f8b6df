"""The command python -m pnfrec_dist.serve: serves a trained model over HTTP, by one process or by several replicas."""

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from pnfrec_dist.cli import HOST, Parser, command, run_command
from pnfrec_dist.cluster.environment import stay_on_this_machine
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.http_server import PORT, serve

REFRESH_SECONDS = 10.0


def main(args: Sequence[str]) -> int:
    """Serves until it is stopped, and returns the exit code. Raises InputError for wrong input."""
    found = _parser().parse_args(args)
    if found.replicas is None:
        for flag, value in (("--host", found.host), ("--token-file", found.token_file), ("--ray-address", found.ray)):
            if value:
                raise InputError(f"{flag} is {value!r}; it needs --replicas, the number of replicas")
        return serve(found.run, found.port)
    if found.replicas < 1:
        raise InputError(f"--replicas is {found.replicas}; it must be >= 1")
    if not found.refresh > 0:
        raise InputError(f"--refresh-seconds is {found.refresh:g}; it must be > 0")
    host = found.host or HOST
    token = _token(found.token_file)
    if not token and not _is_loopback(host):
        raise InputError(f"--host is {host!r}, which other machines reach; give --token-file, a file with a token")
    stay_on_this_machine(found.ray or "")
    # Ray Serve and torch take seconds to import.
    from pnfrec_dist.cluster.replicas import ServerOptions
    from pnfrec_dist.inference.replica_server import serve_replicas

    options = ServerOptions(found.replicas, host, found.port, token, found.ray or "")
    return serve_replicas(found.run, options, found.refresh)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=command("serve"),
        allow_abbrev=False,
        description=f"Serves a trained model on {HOST}, to this machine only, until Ctrl-C. With --replicas, Ray Serve "
        "answers requests that come together in one pass, and a moved alias is taken up without a restart.",
        epilog=f"Example: {command('serve')} --run models:/pnfrec-dist-ml1m@champion --replicas 2",
    )
    parser.add_argument(
        "--run",
        required=True,
        help="the model: a run's directory, an MLflow run id, models:/<name>/<version>, models:/<name>@<alias>, or the "
        "name of a registered model",
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument("--replicas", type=int, help="processes with the model, by Ray Serve; default: MLflow's server")
    parser.add_argument("--host", help=f"address to listen at, with --replicas; default: {HOST}")
    parser.add_argument("--token-file", help="file with the token that requests must have, with --replicas")
    parser.add_argument(
        "--refresh-seconds",
        dest="refresh",
        type=float,
        default=REFRESH_SECONDS,
        help="how often an alias is looked up again, with --replicas; default: %(default)g",
    )
    parser.add_argument("--ray-address", dest="ray", help="address of a running Ray cluster, with --replicas")
    return parser


def _token(file: str | None) -> str:
    if file is None:
        return ""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--token-file is {file!r}, and there is no such file")
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise InputError(f"--token-file {file} is empty; write a token into it")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    run_command(main)
