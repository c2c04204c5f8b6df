"""The command python -m tune: searches training settings and writes the best ones to a file."""

from collections.abc import Sequence

from pnfrec_dist.cli import run_command
from pnfrec_dist.cluster.environment import stay_on_this_machine
from tune.options import base_settings, parse, planned_stages


def main(args: Sequence[str]) -> int:
    """Searches and returns the exit code. Raises InputError for wrong input."""
    options = parse(args)
    stages = planned_stages(options)
    stay_on_this_machine(base_settings(options, stages[0], {}).ray_address)
    from tune.sweep import run_sweep  # imports Ray, torch and MLflow: too slow for --help or a typo

    return run_sweep(options, stages)


if __name__ == "__main__":
    run_command(main)
