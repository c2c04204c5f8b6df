"""The command python -m pnfrec_dist.export: writes a trained model for search indexes and other programs."""

from collections.abc import Sequence
from pathlib import Path

from pnfrec_dist.cli import Parser, command, run_command


def main(args: Sequence[str]) -> int:
    """Exports and returns the exit code. Raises InputError for wrong input."""
    parser = Parser(
        prog=command("export"),
        allow_abbrev=False,
        description="Writes a trained model as item vectors (NumPy and Parquet, for any search index) and as an "
        "encoder of users (torch.export). A user vector times an item vector is the model's score. The files are "
        "compared with the model before they are moved to --out.",
        epilog=f"Example: {command('export')} --run models:/pnfrec-dist-ml1m@best --out exported/ml1m",
    )
    parser.add_argument(
        "--run",
        required=True,
        help="the model: a run's directory or one of its checkpoints, an MLflow run id, models:/<name>/<version>, "
        "models:/<name>@<alias>, or the name of a registered model",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new directory, or an earlier export to replace"
    )
    parser.add_argument(
        "--data-dir",
        default="data/prepared",
        help="for a checkpoint: directory of prepared data sets (default: %(default)s)",
    )
    found = parser.parse_args(args)
    # These import torch, which is too slow for --help or a typo.
    from pnfrec_dist.inference.export import export, require_replaceable
    from pnfrec_dist.inference.trained_model import open_trained

    require_replaceable(found.out)
    print(export(open_trained(found.run, found.data_dir), found.out))
    return 0


if __name__ == "__main__":
    run_command(main)
