"""The command python -m pnfrec_dist.recommend: makes a list for every user of a prepared data set."""

from collections.abc import Sequence

from pnfrec_dist.cli import command, parse_flags, run_command
from pnfrec_dist.cluster.environment import stay_on_this_machine
from pnfrec_dist.config.inference_settings import RecommendSettings
from pnfrec_dist.errors import InputError


def main(args: Sequence[str]) -> int:
    """Writes or shows lists and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(RecommendSettings, RecommendSettings(), args, command("recommend"))
    if not settings.run:
        raise InputError(f"--run is missing; name the model, such as runs/<run>; see {command('recommend')} --help")
    if "--show" in args and (settings.out or not settings.show):
        raise InputError("--show takes user ids and writes nothing; name some users, and leave out --out")
    if not (settings.out or settings.show):
        raise InputError("--out is missing; name a directory for the lists, or show some users with --show USER")
    stay_on_this_machine(settings.ray_address)
    # Ray and torch take seconds to import: too slow for --help or a typo.
    if settings.show:
        from pnfrec_dist.inference.user_cards import show_cards

        return show_cards(settings)
    from pnfrec_dist.inference.batch_job import recommend

    return recommend(settings)


if __name__ == "__main__":
    run_command(main)
