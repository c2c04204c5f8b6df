"""The command python -m pnfrec_dist.evaluate: a trained model on held-out users, with its dislikes speaking or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from pnfrec_dist.cli import parse_flags, run_command
from pnfrec_dist.errors import InputError, require

PROG = "python -m pnfrec_dist.evaluate"


@dataclass(frozen=True)
class EvaluateSettings:
    """Ranks the catalog for held-out users by s_p - gamma * s_n and picks gamma on validation users.

    s_p is the main encoder's score and s_n the negative encoder's; gamma 0 is the model as it was trained to rank. Test
    users then show gamma 0 and the best gamma above 0.
    """

    run: str = ""
    """the model: a run's directory, a checkpoint, an MLflow run id, a registered model (name, models:/name/version)"""
    gammas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
    """what is tried; 0 is always among them, and alone for a model without a negative encoder"""
    few: int = 20
    """users whose history holds at most so many likes are shown apart, too"""
    out: str = ""
    """JSON file of all figures; default: they are printed alone"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""

    def __post_init__(self) -> None:
        in_range = all(0 <= gamma < float("inf") for gamma in self.gammas)
        require(bool(self.gammas) and in_range, "--gammas", self.gammas, "finite numbers >= 0")
        require(self.few >= 1, "--few", self.few, ">= 1")


def main(args: Sequence[str]) -> int:
    """Evaluates and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(EvaluateSettings, EvaluateSettings(), args, PROG)
    if not settings.run:
        raise InputError(f"--run is missing; name the model, such as runs/<run>; see {PROG} --help")
    from pnfrec_dist.evaluating import run  # torch takes seconds to import

    return run(settings)


if __name__ == "__main__":
    run_command(main)
