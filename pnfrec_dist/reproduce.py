"""The command python -m pnfrec_dist.reproduce: trains models with several seeds, and compares them."""

from collections.abc import Sequence

from pnfrec_dist.cli import run_command
from pnfrec_dist.cluster.environment import stay_on_this_machine
from pnfrec_dist.experiments.reproduction_options import parse
from pnfrec_dist.experiments.reproduction_plan import planned


def main(args: Sequence[str]) -> int:
    """Reproduces and returns the exit code. Raises InputError for wrong input."""
    options = parse(args)
    trainings = planned(options)
    stay_on_this_machine(trainings[0].settings.ray_address)
    # Ray, torch and MLflow take seconds to import: too slow for --help or a typo.
    from pnfrec_dist.experiments.reproduction import reproduce

    return reproduce(options, trainings)


if __name__ == "__main__":
    run_command(main)
