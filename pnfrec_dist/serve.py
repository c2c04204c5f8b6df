"""The command python -m pnfrec_dist.serve: serves a trained model with MLflow's HTTP server, on this machine."""

from collections.abc import Sequence

from pnfrec_dist.cli import HOST, Parser, command, run_command
from pnfrec_dist.inference.http_server import PORT, serve


def main(args: Sequence[str]) -> int:
    """Serves until it is stopped, and returns the exit code. Raises InputError for wrong input."""
    parser = Parser(
        prog=command("serve"),
        allow_abbrev=False,
        description=f"Serves a trained model on {HOST}, to this machine only, until Ctrl-C.",
        epilog=f"Example: {command('serve')} --run models:/pnfrec-dist-ml1m@best",
    )
    parser.add_argument(
        "--run",
        required=True,
        help="the model: a run's directory, an MLflow run id, models:/<name>/<version>, models:/<name>@<alias>, or the "
        "name of a registered model",
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    found = parser.parse_args(args)
    return serve(found.run, found.port)


if __name__ == "__main__":
    run_command(main)
