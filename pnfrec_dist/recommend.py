"""The command python -m pnfrec_dist.recommend: a trained model and a prepared data set -> a list for every user."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pnfrec_dist.cli import parse_flags, run_command
from pnfrec_dist.errors import InputError, require
from pnfrec_dist.train import RAY_CLUSTER

PROG = "python -m pnfrec_dist.recommend"


@dataclass(frozen=True)
class RecommendSettings:
    """Writes the best items for every user of a prepared data set, from the user's whole history, as Parquet.

    A command that was stopped or killed goes on where it stood; --out holds the old lists until the new ones are whole.
    """

    run: str = ""
    """the model: a run's directory, a checkpoint, an MLflow run id, a registered model (name, models:/name/version)"""
    dataset: str = ""
    """prepared data set with the users; default: the one that the model was trained on"""
    out: str = ""
    """directory of the lists"""
    top_k: int = 20
    """length of a list"""
    gamma: float = 0.0
    """weight of the negative encoder's score, taken off (python -m pnfrec_dist.evaluate picks one); 0: none"""
    users: str = ""
    """text file of the users that are wanted, one raw id a line; default: all"""
    keep_seen: bool = False
    """list what the user has met as well"""
    allow: str = ""
    """text file of the items that may be listed, one raw id a line; default: all"""
    deny: str = ""
    """text file of items that are never listed, one raw id a line"""
    deny_pairs: str = ""
    """Parquet file with columns user_id and raw_item_id: what single users are not shown"""
    show: tuple[str, ...] = ()
    """print the lists of these users beside what they liked and disliked, and write nothing"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""
    num_workers: int | None = None
    """CPU workers; default: 2, or one per GPU where Ray sees GPUs"""
    num_gpus: int | None = None
    """GPUs to use, one worker each; 0 keeps to the CPU"""
    ray_address: str = ""
    """address of a running Ray cluster, whose machines reach --out; empty: start Ray on this machine"""
    batch_size: int = 256
    """users ranked at once by one worker"""
    dry_run: bool = False
    """open everything, print the plan, write nothing"""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "--top-k", self.top_k, ">= 1")
        require(0 <= self.gamma < float("inf"), "--gamma", self.gamma, "a finite number >= 0")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, ">= 1")
        require("://" not in self.out, "--out", self.out, "a path that all workers reach, not an object store")


def main(args: Sequence[str]) -> int:
    """Writes or shows lists and returns the exit code. Raises InputError for wrong input."""
    settings = parse_flags(RecommendSettings, RecommendSettings(), args, PROG)
    if not settings.run:
        raise InputError(f"--run is missing; name the model, such as runs/<run>; see {PROG} --help")
    if "--show" in args and (settings.out or not settings.show):
        raise InputError("--show takes users and writes nothing; name some users, and leave --out out")
    if not (settings.out or settings.show):
        raise InputError("--out is missing; name the directory of the lists, or look at some with --show USER")
    if not settings.ray_address:
        os.environ.setdefault(RAY_CLUSTER, "0")
    # Ray reads that when it is imported, which with torch takes seconds.
    from pnfrec_dist.recommending import recommend, show

    return show(settings) if settings.show else recommend(settings)


if __name__ == "__main__":
    run_command(main)
