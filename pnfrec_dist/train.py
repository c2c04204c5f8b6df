"""The command python -m pnfrec_dist.train: prepared data set -> trained, evaluated, tracked model."""

import sys
from collections.abc import Sequence

from pnfrec_dist.cli import parse_train_settings, print_settings, run_command, selected
from pnfrec_dist.cluster.environment import stay_on_this_machine
from pnfrec_dist.config.mappings import flatten, to_mapping


def main(args: Sequence[str]) -> int:
    """Trains and returns the exit code. Raises InputError for wrong input."""
    final = selected(args, {"final": ""})["final"]
    if final:
        from pnfrec_dist.experiments.final_training import final_settings  # imports torch, as below

        settings = final_settings(final, args)
    else:
        settings = parse_train_settings(args)
    stay_on_this_machine(settings.ray_address)
    print(f"{settings.model} on {settings.dataset}")
    print_settings(flatten(to_mapping(settings)))
    sys.stdout.flush()
    # torch takes seconds to import, too long for --help or a typo.
    from pnfrec_dist.experiments.tracked_training import drive

    return drive(settings)


if __name__ == "__main__":
    run_command(main)
