"""The command python -m pnfrec_dist.train: prepared data set -> trained, evaluated, tracked model."""

import os
from collections.abc import Sequence

from pnfrec_dist.cli import parse_train_settings, run_command

RAY_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, off it makes Ray a single node on any system, which listens on loopback alone."""


def main(args: Sequence[str]) -> int:
    """Trains and returns the exit code. Raises InputError for wrong input."""
    settings = parse_train_settings(args)
    if not settings.ray_address:
        os.environ.setdefault(RAY_CLUSTER, "0")
    # Ray reads that when it is imported. With torch and MLflow it takes seconds, too long for --help or a typo.
    from pnfrec_dist.driver import drive

    return drive(settings)


if __name__ == "__main__":
    run_command(main)
