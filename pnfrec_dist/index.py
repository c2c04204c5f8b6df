"""The command python -m pnfrec_dist.index: builds an approximate index of a trained model's items."""

from collections.abc import Sequence

from pnfrec_dist.cli import command, parse_flags, run_command
from pnfrec_dist.config.inference_settings import IndexSettings
from pnfrec_dist.errors import InputError


def main(args: Sequence[str]) -> int:
    """Builds and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(IndexSettings, IndexSettings(), args, command("index"))
    for flag, value in (("--run", settings.run), ("--out", settings.out)):
        if not value:
            raise InputError(f"{flag} is missing; see {command('index')} --help")
    from pnfrec_dist.inference.index_command import build_index  # torch and FAISS take seconds to import

    return build_index(settings)


if __name__ == "__main__":
    run_command(main)
