"""python -m spark_jobs --dataset ml1m --raw DIR"""

from collections.abc import Sequence

from pnfrec_dist.cli import run_command


def main(args: Sequence[str]) -> None:
    """Prepares a data set. Raises InputError for wrong input."""
    from spark_jobs.prepare import main as prepare  # without PySpark, run_command prints one line

    prepare(args)


if __name__ == "__main__":
    run_command(main)
