"""Settings of a training: typed, frozen, each checked in its class. conf_files.py reads YAML, cli.py reads flags.

All defaults are here. conf/*.yaml override them, and flags override conf/.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from pnfrec_dist.config.histories import HISTORIES, History, HistoryKind
from pnfrec_dist.config.registry import BLOCKS, CROSS_ENTROPIES, MEASURES, TERMS
from pnfrec_dist.errors import InputError, require

ExactPath = Literal["auto", "materialised", "chunked", "tiled", "fused"]
MAX_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class EncoderSettings:
    """The transformer encoder (SASRec); both encoders use these settings."""

    hidden_size: int = 64
    """d, width of item vectors and hidden states; with history both, item vectors are twice as wide"""
    num_blocks: int = 2
    """transformer blocks"""
    block: str = "sasrec"
    """kind of block: sasrec, or your own (docs/extending.md)"""
    num_heads: int = 1
    """attention heads; divides hidden_size"""
    history: History = "positive"
    """what the main encoder (the one that recommends) reads: the positives S^p, or all interactions S; signed: S, and
    which of them are dislikes; both: signed, and a second encoder over the likes alone, whose scores are added"""
    likes_share: float | Literal["auto"] = "auto"
    """share of the likes' encoder in the scores, with history both; auto: after each epoch, the one of 0, 0.2, ..., 1
    with the best NDCG_p@10 on validation users"""
    max_length: int = 50
    """l, positions per side: the newest l items of a list are read; with another history than
    positive, the newest 2 l interactions"""
    dropout: float = 0.1
    """dropout rate on the embedding sum, on the attention weights, and twice in the feed-forward part"""

    def __post_init__(self) -> None:
        require(self.hidden_size >= 1, "encoder.hidden_size", self.hidden_size, ">= 1")
        require(self.num_blocks >= 1, "encoder.num_blocks", self.num_blocks, ">= 1")
        require(
            self.num_heads >= 1 and self.hidden_size % self.num_heads == 0,
            "encoder.num_heads",
            self.num_heads,
            f"a divisor of encoder.hidden_size {self.hidden_size}",
        )
        require(self.max_length >= 1, "encoder.max_length", self.max_length, ">= 1")
        require(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "in [0, 1)")
        in_range = self.likes_share == "auto" or 0 <= self.likes_share <= 1
        require(in_range, "encoder.likes_share", self.likes_share, "auto, or in [0, 1]")
        BLOCKS.require(self.block)

    @property
    def history_kind(self) -> HistoryKind:
        return HISTORIES[self.history]

    @property
    def vector_size(self) -> int:
        """Width of item vectors, and of what scores them."""
        return self.hidden_size * (2 if self.history_kind.reads_likes_too else 1)

    @property
    def positions(self) -> int:
        """The longest input: l, or 2 l if all interactions are read."""
        return self.history_kind.windows(self.max_length)


@dataclass(frozen=True)
class LossSettings:
    """L = CE_p + alpha * CE_n + beta * L_c, plus further terms."""

    alpha: float = 0.0
    """weight of the cross-entropy over negatives; 0: not computed"""
    beta: float = 0.0
    """weight of the contrastive term; 0: not computed"""
    terms: tuple[str, ...] = ()
    """further terms, each as name=weight (docs/extending.md)"""
    cross_entropy: str = "exact"
    """exact: softmax over the whole catalog; sampled_softmax, sce, gbce: over some items (see sampled.*)"""
    exact_path: ExactPath = "auto"
    """parts in which the exact softmax is computed: materialised: all at once; chunked: the whole catalog for some
    targets; tiled: some items for some targets; fused: tiles in a GPU's registers (bfloat16 only)"""
    tile_mib: float = 0.0
    """most MiB of logits at a time (no limit for materialised); 0: 16 on a CPU, 256 on a GPU"""

    def __post_init__(self) -> None:
        require(self.tile_mib >= 0 and math.isfinite(self.tile_mib), "loss.tile_mib", self.tile_mib, "a number >= 0")
        require(self.alpha >= 0 and math.isfinite(self.alpha), "loss.alpha", self.alpha, "a finite number >= 0")
        require(self.beta >= 0 and math.isfinite(self.beta), "loss.beta", self.beta, "a finite number >= 0")
        CROSS_ENTROPIES.require(self.cross_entropy)
        for name in self.weights:
            TERMS.require(name)

    @property
    def weights(self) -> dict[str, float]:
        """Term -> its weight in the loss, if above 0. Raises InputError for a further term that is not name=weight."""
        own = {"ce_main": 1.0, "ce_negative": self.alpha, "contrastive": self.beta}
        found = dict(own)
        for entry in self.terms:
            name, _, weight = entry.rpartition("=")
            try:
                found[name] = float(weight)
            except ValueError:
                raise InputError(f"loss.terms has {entry!r}; a term must be name=weight") from None
            in_range = found[name] >= 0 and math.isfinite(found[name])
            require(in_range, f"loss.terms: {name}", weight, "a finite weight >= 0")
            require(name not in own, "loss.terms", entry, "another term than those of loss.alpha and loss.beta")
        return {name: weight for name, weight in found.items() if weight > 0}


@dataclass(frozen=True)
class SampledSettings:
    """Settings of the losses over some items; not used if loss.cross_entropy is exact."""

    num_items: int = 1024
    """items drawn per step, shared by all its targets (sampled_softmax, gbce)"""
    distribution: Literal["uniform", "popularity"] = "uniform"
    """how items are drawn; popularity: in proportion to their train interactions (only sampled_softmax)"""
    gbce_calibration: float = 0.75
    """0: plain binary cross-entropy; 1: probabilities as without sampling; values between mix both"""
    sce_buckets: int = 256
    """buckets of sce: random mixtures of hidden states"""
    sce_targets: int = 256
    """targets that each bucket picks"""
    sce_items: int = 512
    """items that each bucket picks"""

    def __post_init__(self) -> None:
        for name in ("num_items", "sce_buckets", "sce_targets", "sce_items"):
            require(getattr(self, name) >= 1, f"sampled.{name}", getattr(self, name), ">= 1")
        require(0 <= self.gbce_calibration <= 1, "sampled.gbce_calibration", self.gbce_calibration, "in [0, 1]")


@dataclass(frozen=True)
class ContrastiveSettings:
    """The contrastive term L_c."""

    similarity: Literal["cosine", "dot"] = "cosine"
    """similarity in L_c: the paper's cosine, or the dot product of the authors' code"""
    temperature: float = 1.0
    """the similarity is divided by this"""

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature)
        require(finite and self.temperature > 0, "contrastive.temperature", self.temperature, "a finite number > 0")


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam (betas 0.9 and 0.999, eps 1e-8, no weight decay)."""

    lr: float = 1e-3
    """learning rate"""
    max_gradient_norm: float = 0.0
    """gradients are scaled down to at most this norm over all parameters; 0: not scaled"""

    def __post_init__(self) -> None:
        norm = self.max_gradient_norm
        require(norm >= 0 and math.isfinite(norm), "optimizer.max_gradient_norm", norm, "a finite number >= 0")
        require(self.lr > 0 and math.isfinite(self.lr), "optimizer.lr", self.lr, "a finite number > 0")


@dataclass(frozen=True)
class TrainSettings:
    """Batches and stopping."""

    batch_size: int = 500
    """users in one global step, over all workers"""
    accumulation: int = 1
    """number of parts in which a worker computes its share of a step, one after another, to save memory"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of matrix products and activations; auto: bfloat16 on GPUs and, for hidden sizes from 32 and hidden size x
    batch size from 12,000 on, on CPUs with AMX, else float32; a resumed run keeps what it began with"""
    compile: bool = False
    """use torch.compile for the token-wise parts of the encoders"""
    cuda_graph: bool = True
    """on one GPU, record the step as a CUDA graph and replay it, if the loss is exact and all code is built in"""
    non_finite: Literal["stop", "skip"] = "stop"
    """if a loss or gradient is nan or infinite: end the run, or skip the step and count it; in both cases its users are
    written to a file"""
    patience: int = 10
    """stop after this many epochs without a better validation NDCG_p@10"""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        fits = 1 <= self.accumulation <= self.batch_size
        require(fits, "train.accumulation", self.accumulation, f"from 1 to train.batch_size ({self.batch_size})")
        require(self.patience >= 1, "train.patience", self.patience, ">= 1")


@dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints, from which a run resumes. There is always one after every epoch."""

    every_steps: int = 0
    """also after this many steps; 0: off"""
    every_minutes: float = 10.0
    """also after this many minutes; 0: off"""
    keep: int = 2
    """how many of the newest are kept, in addition to that of the best epoch"""
    background: bool = True
    """write a copy while training goes on; off: training waits, and no memory is needed for a copy"""

    def __post_init__(self) -> None:
        minutes = self.every_minutes
        require(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, ">= 0")
        require(minutes >= 0 and math.isfinite(minutes), "checkpoint.every_minutes", minutes, "a finite number >= 0")
        require(self.keep >= 1, "checkpoint.keep", self.keep, ">= 1")


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation by ranking the whole catalog minus seen items."""

    cutoffs: tuple[int, ...] = (5, 10, 20)
    """k of the measures and of Coverage; must contain 10"""
    batch_size: int = 256
    """users that one worker scores at once"""
    measures: tuple[str, ...] = ("hr", "ndcg", "mrr")
    """measures at each k: hr, ndcg, mrr, or your own (docs/extending.md)"""
    points: int | Literal["auto", "last"] = "auto"
    """the test also ranks up to this many holdout interactions of each user, each from what came before it; auto: 12,
    or fewer so that there are at most 50,000 points; last: only each user's last interaction, as in the paper"""
    select_on: Literal["last", "points", "auto"] = "last"
    """the validation targets for early stopping, and of all val/ metrics: each user's last interaction, or points;
    auto: points if the data have them"""
    gamma: float | Literal["auto"] = 0.0
    """gamma times an item's score as the next dislike is subtracted from its score, in validation, in the test and, by
    default, in lists; 0: off; auto: in the test and in lists, the one of 0, 0.05, ..., 0.5 that validation users choose
    (docs/evaluation.md)"""

    def __post_init__(self) -> None:
        is_count = not isinstance(self.points, int) or self.points >= 1
        require(is_count, "evaluation.points", self.points, "auto, last, or >= 1")
        has_points = self.select_on != "points" or self.points != "last"
        require(has_points, "evaluation.select_on", self.select_on, "last or auto if evaluation.points is last")
        require(
            "ndcg" in self.measures, "evaluation.measures", self.measures, "a list with ndcg (models are chosen by it)"
        )
        for name in self.measures:
            MEASURES.require(name)
        require(
            10 in self.cutoffs and min(self.cutoffs) >= 1,
            "evaluation.cutoffs",
            self.cutoffs,
            "whole numbers >= 1 that include 10 (the result table and early stopping use it)",
        )
        require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, ">= 1")
        in_range = self.gamma == "auto" or 0 <= self.gamma < math.inf
        require(in_range, "evaluation.gamma", self.gamma, "auto, or a finite number >= 0")


@dataclass(frozen=True)
class Settings:
    """Trains a sequential recommender on a prepared data set and logs the run to MLflow.

    Defaults come from conf/train/<config>.yaml and conf/model/<model>.yaml. The flags below override them.
    """

    dataset: str = "synthetic"
    """name of the prepared data set (pnfrec prep --dataset ...)"""
    model: str = "pnfrec_plus"
    """name of a file in conf/model/, which sets the encoders, alpha and beta"""
    config: str = ""
    """name of a file in conf/train/, or a path; empty: the file named like the data set if it exists, else default"""
    num_workers: int | None = None
    """CPU workers; default: 2, or one per GPU if there are GPUs"""
    min_workers: int | None = None
    """minimum number of workers after a machine is lost (more join when there is room); default: all are needed"""
    num_gpus: int | None = None
    """GPUs to use, one worker each; 0: only CPUs"""
    epochs: int = 100
    """maximum number of epochs"""
    seed: int = 42
    """random seed of initialisation, order of users and dropout"""
    dry_run: bool = False
    """check everything, print the plan, train nothing"""
    resume: str = "auto"
    """auto: resume an unfinished run of these settings and data if there is one; never: start a new run; or a run's
    directory or one of its checkpoints, to resume from"""
    init_from: str = ""
    """begin with the weights of a trained model, named as for pnfrec recommend --run; items keep their vectors by raw
    id, and their optimizer state if it is a run's directory or a checkpoint; empty: random weights"""
    final: str = ""
    """directory of a finished run: train its model on all interactions, for as many epochs as its best one, with the
    weights of the scores that it chose; needs a data set that is prepared with split.holdout none"""
    max_failures: int = 3
    """how often several workers, or a sweep's trial, are started again (a single worker is the command itself)"""
    stall_timeout: float = 600.0
    """seconds without progress after which several workers, or a sweep's trial, are killed and started again"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""
    output_dir: str = "runs"
    """directory of the runs; with several machines, a shared one"""
    experiment: str = "pnfrec-dist"
    """name of the MLflow experiment"""
    item_table: Literal["auto", "replicated", "sharded"] = "auto"
    """replicated: every worker holds all rows; sharded: each holds a range; auto: the one that sends less data"""
    ray_address: str = ""
    """address of a running Ray cluster; empty: this machine (several workers start Ray on it)"""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    sampled: SampledSettings = field(default_factory=SampledSettings)
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        require(self.num_workers is None or self.num_workers >= 1, "num_workers", self.num_workers, ">= 1")
        require(self.min_workers is None or self.min_workers >= 1, "min_workers", self.min_workers, ">= 1")
        require(self.num_gpus is None or self.num_gpus >= 0, "num_gpus", self.num_gpus, ">= 0")
        require(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        require(self.resume.strip() != "", "resume", self.resume, "auto, never, or a directory")
        require(self.max_failures >= 0, "max_failures", self.max_failures, ">= 0")
        in_range = 0 < self.stall_timeout <= MAX_SECONDS
        require(in_range, "stall_timeout", self.stall_timeout, "> 0 and at most 30 days in seconds")
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        has_targets = self.encoder.history_kind.predicts_dislikes or self.loss.alpha == 0
        rule = f"0 if encoder.history is {self.encoder.history}, which does not tell dislikes from likes (signed does)"
        require(has_targets, "loss.alpha", self.loss.alpha, rule)
        has_likes = "ce_likes" in self.loss.weights
        if self.encoder.history_kind.reads_likes_too:
            require(has_likes, "loss.terms", self.loss.terms, "a list with ce_likes=1 for encoder.history both")
        else:
            require(not has_likes, "loss.terms", self.loss.terms, "a list without ce_likes, or encoder.history both")
        share = self.encoder.likes_share
        has_share = share == "auto" or self.encoder.history_kind.reads_likes_too
        require(has_share, "encoder.likes_share", share, "auto, or given with encoder.history both")
        predicting = self.loss.weights.keys() - {"ce_main", "ce_likes", "contrastive"}  # own terms may predict dislikes
        gamma_rule = "0 if loss.alpha is 0, because the model then predicts no dislikes"
        require(self.evaluation.gamma == 0 or bool(predicting), "evaluation.gamma", self.evaluation.gamma, gamma_rule)
        a_path = "a path that all machines reach, not an object store (checkpoints are renamed)"
        require("://" not in self.output_dir, "output_dir", self.output_dir, a_path)
        require(self.experiment.strip() != "", "experiment", self.experiment, "a name")
