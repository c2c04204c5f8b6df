"""The command python -m pnfrec_dist.promote: makes a trained model the champion, if it is not worse."""

from collections.abc import Sequence

from pnfrec_dist.cli import command, parse_flags, run_command
from pnfrec_dist.config.inference_settings import PromoteSettings
from pnfrec_dist.errors import InputError


def main(args: Sequence[str]) -> int:
    """Compares, moves the alias or not, and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(PromoteSettings, PromoteSettings(), args, command("promote"))
    if settings.rollback and not (settings.name or settings.dataset):
        raise InputError("--rollback needs --name, the registered model, or --dataset, from which its name follows")
    if not (settings.run or settings.rollback):
        raise InputError(f"--run is missing; name the candidate, such as runs/<run>; see {command('promote')} --help")
    from pnfrec_dist.experiments.challenger import promote, rollback  # torch and MLflow take seconds to import

    return rollback(settings) if settings.rollback else promote(settings)


if __name__ == "__main__":
    run_command(main)
