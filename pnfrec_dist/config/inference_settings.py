"""Settings of the commands that use a trained model."""

from dataclasses import dataclass, fields
from typing import Literal

from pnfrec_dist.errors import require


@dataclass(frozen=True)
class RecommendSettings:
    """Writes the best items for every user of a prepared data set, from the user's whole history, as Parquet.

    After an interruption, the same command continues. --out keeps the old lists until the new ones are complete.
    """

    run: str = ""
    """the model: a run's directory, a checkpoint, an MLflow run id, a registered model (name, models:/name/version)"""
    dataset: str = ""
    """prepared data set with the users; default: the one on which the model was trained"""
    out: str = ""
    """directory of the lists"""
    top_k: int = 20
    """length of a list"""
    gamma: float | None = None
    """weight of the score as next dislike, which is subtracted (python -m pnfrec_dist.evaluate picks one); 0: off;
    default: that of the model's training (evaluation.gamma)"""
    index: str = ""
    """directory of an approximate index of the items (pnfrec index): its candidates get exact scores; empty: every item
    gets a score"""
    users: str = ""
    """text file of the users to make lists for, one raw id per line; default: all"""
    keep_seen: bool = False
    """also list items that the user has already seen"""
    allow: str = ""
    """text file of the items that may be listed, one raw id per line; default: all"""
    deny: str = ""
    """text file of items that are never listed, one raw id per line"""
    deny_pairs: str = ""
    """Parquet file with columns user_id and raw_item_id: items that are not listed for a user"""
    show: tuple[str, ...] = ()
    """print the lists of these users with what they liked and disliked; write nothing"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""
    num_workers: int | None = None
    """CPU workers; default: 2, or one per GPU if there are GPUs"""
    num_gpus: int | None = None
    """GPUs to use, one worker each; 0: only CPUs"""
    ray_address: str = ""
    """address of a running Ray cluster (its machines must reach --out); empty: this machine"""
    batch_size: int | None = None
    """users ranked at once; default: 256 on a CPU, 2048 on a GPU"""
    dry_run: bool = False
    """check everything, print the plan, write nothing"""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "--top-k", self.top_k, ">= 1")
        in_range = self.gamma is None or 0 <= self.gamma < float("inf")
        require(in_range, "--gamma", self.gamma, "a finite number >= 0")
        require(self.batch_size is None or self.batch_size >= 1, "--batch-size", self.batch_size, ">= 1")
        require("://" not in self.out, "--out", self.out, "a path that all workers can reach, not an object store")


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluates a trained model (--run) at several gammas, or another system's lists (--lists).

    A model ranks the catalog for held-out users by s_p - gamma * s_n: s_p is the score as next like, s_n that as next
    dislike. Gamma 0 is the ranking of the paper. Validation users show the best gamma. The test users are then ranked
    with gamma 0, with that of the training, with the best gamma above 0, and with the largest one that keeps most of
    the best. --write-points writes what another system needs to make lists.
    """

    run: str = ""
    """the model: a run's directory, a checkpoint, an MLflow run id, a registered model (name, models:/name/version)"""
    lists: str = ""
    """Parquet file, or directory of such files, with another system's lists (columns user_id, rank, raw_item_id, and
    point for lists of --write-points): they are evaluated beside the model of --run if there is one"""
    write_points: str = ""
    """Parquet file to write: the points of the evaluation with the histories before them, for another system to make
    lists from"""
    split: Literal["test", "validation"] = "test"
    """users of --lists and --write-points; validation is for what is chosen before the test"""
    dataset: str = ""
    """prepared data set of --lists and --write-points; default: the one on which the model was trained"""
    points: int | Literal["auto"] = "auto"
    """with --lists and --write-points, the same for both: at most this many points of each user; auto: as
    evaluation.points auto"""
    gammas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
    """values to try; 0 and that of the training are always added. Only 0 is used for a model that predicts
    no dislikes"""
    keep: float = 0.95
    """also show the largest gamma whose NDCG_p@10 on validation is at least this share of the best"""
    few: int = 20
    """also show metrics for users with at most this many likes in their history"""
    out: str = ""
    """JSON file for all figures; default: only print them"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""

    def __post_init__(self) -> None:
        in_range = all(0 <= gamma < float("inf") for gamma in self.gammas)
        require(bool(self.gammas) and in_range, "--gammas", self.gammas, "one or more finite numbers >= 0")
        require(0 < self.keep <= 1, "--keep", self.keep, "in (0, 1]")
        require(self.few >= 1, "--few", self.few, ">= 1")
        both = bool(self.lists and self.write_points)
        require(not both, "--lists", self.lists, "given without --write-points: first write points, then evaluate")
        of_lists = bool(self.lists or self.write_points)
        default = {field.name: field.default for field in fields(self)}
        for name in ("split", "dataset", "points"):
            value = getattr(self, name)
            require(of_lists or value == default[name], f"--{name}", value, "given with --lists or --write-points")
        for name in ("gammas", "keep", "few"):
            value = getattr(self, name)
            require(
                not of_lists or value == default[name], f"--{name}", value, "given without --lists and --write-points"
            )
        require(self.points == "auto" or self.points >= 1, "--points", self.points, "auto, or >= 1")


@dataclass(frozen=True)
class IndexSettings:
    """Builds an approximate index of a trained model's items, for recommend --index (FAISS, IVF).

    For some users of the data set, the exact best 100 items are compared with those that the index finds. A search then
    reads as many of the index's lists as --recall needs.
    """

    run: str = ""
    """the model: a run's directory, a checkpoint, an MLflow run id, a registered model (name, models:/name/version)"""
    out: str = ""
    """directory of the index; an earlier one is replaced"""
    dataset: str = ""
    """prepared data set with the users; default: the one on which the model was trained"""
    recall: float = 0.98
    """share of the exact best 100 items that the index must find"""
    users: int = 1_000
    """users among whom recall is measured"""
    gamma: float | None = None
    """as in recommend"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""

    def __post_init__(self) -> None:
        require(0 < self.recall <= 1, "--recall", self.recall, "in (0, 1]")
        require(self.users >= 1, "--users", self.users, ">= 1")


@dataclass(frozen=True)
class PromoteSettings:
    """Compares a trained model with the champion, and makes it the champion if it is not worse.

    The champion is the version of a registered model that has the alias champion; what serves models:/<name>@champion
    takes it up. Both models rank the same points of validation users, those of the newest data. The candidate is worse
    if its NDCG_p@10 is significantly lower (the 95 % interval of the difference over users is below 0), or lower by
    more than --margin. Then nothing is changed, and the exit code is 1. For a final training (train --final), the run
    that chose it is compared.
    """

    run: str = ""
    """the candidate: a run's directory, an MLflow run id, or a registered model (models:/name/version)"""
    name: str = ""
    """registered model whose alias moves; default: pnfrec-dist-<data set>, as reproduce registers it"""
    dataset: str = ""
    """prepared data set with the points; default: the one on which the candidate was trained"""
    margin: float = 0.02
    """how much lower NDCG_p@10 of the candidate may be, as a share of the champion's"""
    rollback: bool = False
    """give the alias back to the version that the champion replaced; needs --name, or --dataset"""
    dry_run: bool = False
    """compare and print, change nothing"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""

    def __post_init__(self) -> None:
        require(0 <= self.margin < 1, "--margin", self.margin, "in [0, 1)")
        require(not (self.run and self.rollback), "--run", self.run, "without --rollback, which compares nothing")
