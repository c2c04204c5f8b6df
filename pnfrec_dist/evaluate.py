"""The command python -m pnfrec_dist.evaluate: evaluates a model with and without subtracting scores as next dislike,
or another system's lists."""

from collections.abc import Sequence

from pnfrec_dist.cli import command, parse_flags, run_command
from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.errors import InputError


def main(args: Sequence[str]) -> int:
    """Evaluates and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(EvaluateSettings, EvaluateSettings(), args, command("evaluate"))
    if settings.write_points:
        from pnfrec_dist.inference.points_file import run as write_points

        return write_points(settings)
    if settings.lists:
        from pnfrec_dist.inference.list_evaluation import run as evaluate_lists  # torch takes seconds to import

        return evaluate_lists(settings)
    if not settings.run:
        way_out = (
            "name the model, such as runs/<run>, or give --lists or --write-points for another system; see "
            f"{command('evaluate')} --help"
        )
        raise InputError(f"--run is missing; {way_out}")
    from pnfrec_dist.inference.gamma_search import run  # torch takes seconds to import

    return run(settings)


if __name__ == "__main__":
    run_command(main)
