"""Settings: typed, frozen, each checked where it is defined. Reading YAML and flags is cli.py's work.

Every default stands here once. conf/*.yaml override them, flags override conf/.
"""

import datetime
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from pnfrec_dist.errors import InputError
from pnfrec_dist.mappings import to_mapping

ExactPath = Literal["auto", "materialised", "chunked", "tiled"]
CrossEntropyKind = Literal["exact", "sampled_softmax", "sce", "gbce"]
EPOCH_UNITS = ("s", "ms", "us")
"""Units of time since 1970-01-01 UTC."""


def _check(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise InputError(f"{name} is {value!r}; it must be {rule}")


# ---- the data set -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceSettings:
    """Where the raw interactions are and how their file is laid out."""

    format: Literal["csv", "json", "parquet"] = "csv"
    """delimited text (csv, tsv, ...), one JSON object a line, or Parquet; text may be compressed (.gz, .bz2)"""
    files: str = "*.csv"
    """file name or glob below the raw directory"""
    directory: str = ""
    """directory (or URI) of the raw files; empty: data/raw/<data set>; RAW (--raw) wins"""
    separator: str = ","
    """between the fields of a text line; more than one character is allowed"""
    quote: str = '"'
    """quoting character of text fields; empty: none"""
    header: bool = True
    """whether each text file opens with a line of column names"""
    fields: tuple[str, ...] = ()
    """column names of a text file without a header, in order"""
    user: str = "user"
    """column that holds the user id"""
    item: str = "item"
    """column that holds the item id"""
    relevance: str = "rating"
    """column that holds the relevance (a rating, a watched share, ...) or the label (liked, skipped, true, ...)"""
    timestamp: str = "timestamp"
    """column that holds the time"""
    time_format: str = "s"
    """s, ms, us: whole numbers since 1970-01-01 UTC; iso: ISO 8601 text; else a pattern such as yyyy-MM-dd HH:mm:ss"""
    url: str = ""
    """official file (zip, or the file itself) to fetch when no raw directory is given; empty: none"""
    md5: str = ""
    """md5 of what the url gives, as its publisher states it"""
    generator: Literal["", "synthetic"] = ""
    """what makes the raw files when no raw directory is given"""

    def __post_init__(self) -> None:
        relative = self.files != "" and not self.files.startswith("/") and ".." not in self.files
        _check(relative, "source.files", self.files, "a name or glob below the raw directory")
        _check(self.separator != "", "source.separator", self.separator, "at least one character")
        _check(len(self.quote) <= 1, "source.quote", self.quote, "one character or empty")
        _check(
            self.header or bool(self.fields) or self.format != "csv",
            "source.fields",
            self.fields,
            "the column names in order, as the file has no header (source.header: false)",
        )
        is_time = self.time_format in (*EPOCH_UNITS, "iso") or re.search("yy|uu", self.time_format) is not None
        _check(is_time, "source.time_format", self.time_format, "s, ms, us, iso or a pattern such as yyyy-MM-dd")


@dataclass(frozen=True)
class CleanSettings:
    """What happens to rows that cannot be read, and to those that say the same twice."""

    max_quarantine_share: float = 0.01
    """share of rows that may be unreadable and go to quarantine/; above it the build fails"""
    duplicates: Literal["keep_all", "keep_first", "keep_last"] = "keep_all"
    """which rows stay when a user meets an item at several times (equal rows always collapse)"""
    earliest: str = "1990-01-01"
    """rows before this date are unreadable; empty: any date"""
    latest: str = "2100-01-01"
    """rows from this date on are unreadable; empty: any date"""

    def __post_init__(self) -> None:
        _check(0 <= self.max_quarantine_share < 1, "clean.max_quarantine_share", self.max_quarantine_share, "in [0, 1)")
        for name in ("earliest", "latest"):
            value = getattr(self, name)
            _check(value == "" or _is_date(value), f"clean.{name}", value, "a date such as 1990-01-01, or empty")
        ordered = not (self.earliest and self.latest) or self.earliest < self.latest
        _check(ordered, "clean.latest", self.latest, f"after clean.earliest {self.earliest}")


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True)
class FeedbackSettings:
    """What counts as positive."""

    threshold: float | Literal["median", "quantile", "labels"] = "median"
    """positive when relevance >= this number, >= the median or a quantile of train's relevances, or by its label"""
    quantile: float | None = None
    """for threshold: quantile; in [0, 1], the nearest observed relevance"""
    positive_labels: tuple[str, ...] = ()
    """for threshold: labels; values of the relevance column that are positive (upper and lower case alike)"""
    negative_labels: tuple[str, ...] = ()
    """for threshold: labels; values that are negative, others are unreadable; empty: every other value is negative"""

    def __post_init__(self) -> None:
        rule = self.threshold
        finite = isinstance(rule, str) or math.isfinite(rule)
        _check(finite, "feedback.threshold", rule, "a finite number, 'median', 'quantile' or 'labels'")
        if rule == "quantile":
            ok = self.quantile is not None and 0 <= self.quantile <= 1
            _check(ok, "feedback.quantile", self.quantile, "in [0, 1], as feedback.threshold is 'quantile'")
        else:
            _check(self.quantile is None, "feedback.quantile", self.quantile, "left out: the threshold is no quantile")
        if rule == "labels":
            way_out = "at least one label, as feedback.threshold is 'labels'"
            _check(bool(self.positive_labels), "feedback.positive_labels", self.positive_labels, way_out)
        else:
            for name in ("positive_labels", "negative_labels"):
                labels = getattr(self, name)
                _check(not labels, f"feedback.{name}", labels, "left out, unless feedback.threshold is 'labels'")
        both = {v.lower() for v in self.positive_labels} & {v.lower() for v in self.negative_labels}
        _check(not both, "feedback.negative_labels", self.negative_labels, "none of the positive labels")


@dataclass(frozen=True)
class FilterSettings:
    """Support filter: items first, then users."""

    min_users_per_item: int = 5
    """items with fewer distinct users are dropped"""
    min_items_per_user: int = 5
    """then users with fewer distinct items are dropped"""
    iterate: bool = False
    """repeat both passes until nothing changes"""
    scope: Literal["train", "all"] = "train"
    """what is counted: interactions before T (nothing later can change train), or all of them (the paper)"""

    def __post_init__(self) -> None:
        _check(self.min_users_per_item >= 0, "filter.min_users_per_item", self.min_users_per_item, ">= 0")
        _check(self.min_items_per_user >= 0, "filter.min_items_per_user", self.min_items_per_user, ">= 0")


@dataclass(frozen=True)
class SplitSettings:
    """Global temporal split, then holdout users halved into validation and test."""

    quantile: float = 0.9
    """T is this quantile of all timestamps (nearest observed value); train: < T, holdout: >= T"""
    assignment: Literal["permutation", "hash"] = "hash"
    """how holdout users are halved: a seeded permutation of the sorted ids, or a seeded hash of each id"""
    seed: int = 42
    """seed of the assignment"""
    min_positives: int = 2
    """users need this many positives in train, and validation/test users in the holdout; 0 turns it off"""

    def __post_init__(self) -> None:
        _check(0 < self.quantile < 1, "split.quantile", self.quantile, "in (0, 1)")
        _check(0 <= self.seed < 2**32, "split.seed", self.seed, "in [0, 2^32)")
        _check(self.min_positives >= 0, "split.min_positives", self.min_positives, ">= 0")


@dataclass(frozen=True)
class ExpectedSettings:
    """What is known of a build from the official file (the paper's Table 1); the job compares. Empty: not compared."""

    rows: int | None = None
    """rows of the official file"""
    users: int | None = None
    """users after the filter"""
    items: int | None = None
    """items after the filter, or those of them that train has"""
    actions: int | None = None
    """interactions after the filter"""
    negative_percent: int | None = None
    """share of them that is negative, rounded"""


@dataclass(frozen=True)
class DatasetSettings:
    """One data set: conf/dataset/<name>.yaml."""

    source: SourceSettings = field(default_factory=SourceSettings)
    clean: CleanSettings = field(default_factory=CleanSettings)
    feedback: FeedbackSettings = field(default_factory=FeedbackSettings)
    filter: FilterSettings = field(default_factory=FilterSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    expected: ExpectedSettings = field(default_factory=ExpectedSettings)
    max_history: int = 200
    """newest entries that each list column keeps (seen_items is complete)"""
    shard_mb: int = 64
    """about this many MB a shard"""

    def __post_init__(self) -> None:
        _check(self.max_history >= 2, "max_history", self.max_history, ">= 2")
        _check(self.shard_mb >= 1, "shard_mb", self.shard_mb, ">= 1")

    def prepared(self) -> dict[str, Any]:
        """The part that decides what the prepared data set holds."""
        mapping = to_mapping(self)
        kept = {name: mapping[name] for name in ("source", "clean", "feedback", "filter", "split")}
        for section, name in (
            *(("source", name) for name in ("directory", "url", "md5", "generator")),
            ("clean", "max_quarantine_share"),
        ):
            del kept[section][name]
        return {**kept, "max_history": self.max_history, "shard_mb": self.shard_mb}


# ---- training ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderSettings:
    """The transformer encoder (SASRec; both encoders share these sizes)."""

    hidden_size: int = 64
    """d, width of item vectors and hidden states"""
    num_blocks: int = 2
    """transformer blocks"""
    num_heads: int = 1
    """attention heads; divides hidden_size"""
    max_length: int = 50
    """l, positions per side: the newest l inputs of each list are read"""
    dropout: float = 0.1
    """on the embedding sum, the attention weights and twice in the feed-forward part"""

    def __post_init__(self) -> None:
        _check(self.hidden_size >= 1, "encoder.hidden_size", self.hidden_size, ">= 1")
        _check(self.num_blocks >= 1, "encoder.num_blocks", self.num_blocks, ">= 1")
        _check(
            self.num_heads >= 1 and self.hidden_size % self.num_heads == 0,
            "encoder.num_heads",
            self.num_heads,
            f"a divisor of encoder.hidden_size {self.hidden_size}",
        )
        _check(self.max_length >= 1, "encoder.max_length", self.max_length, ">= 1")
        _check(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "in [0, 1)")


@dataclass(frozen=True)
class LossSettings:
    """L = CE_p + alpha * CE_n + beta * L_c."""

    alpha: float = 0.0
    """weight of the cross-entropy over negatives; 0: no negative encoder is built"""
    beta: float = 0.0
    """weight of the contrastive term; 0: it is not computed"""
    cross_entropy: CrossEntropyKind = "exact"
    """exact: softmax over the whole catalog; sampled_softmax, sce, gbce: over some items (see the sampled settings)"""
    exact_path: ExactPath = "auto"
    """how the softmax over the catalog is cut: all logits at once, whole catalog for some targets, or tiles"""
    tile_mib: float = 8.0
    """most MiB of logits at a time (materialised: no limit)"""

    def __post_init__(self) -> None:
        _check(self.tile_mib > 0 and math.isfinite(self.tile_mib), "loss.tile_mib", self.tile_mib, "a number > 0")
        _check(self.alpha >= 0 and math.isfinite(self.alpha), "loss.alpha", self.alpha, "a finite number >= 0")
        _check(self.beta >= 0 and math.isfinite(self.beta), "loss.beta", self.beta, "a finite number >= 0")


@dataclass(frozen=True)
class SampledSettings:
    """What the losses over some items look at; unused where loss.cross_entropy is exact."""

    num_items: int = 1024
    """items drawn for a step, shared by all its targets (sampled_softmax, gbce)"""
    distribution: Literal["uniform", "popularity"] = "uniform"
    """popularity: in proportion to train interactions (sampled_softmax, gbce)"""
    gbce_calibration: float = 0.75
    """0: plain binary cross-entropy; 1: probabilities as without sampling; between: some of both"""
    sce_buckets: int = 256
    """random mixtures of hidden states"""
    sce_targets: int = 256
    """targets that each of them picks"""
    sce_items: int = 512
    """items that each of them picks"""

    def __post_init__(self) -> None:
        for name in ("num_items", "sce_buckets", "sce_targets", "sce_items"):
            _check(getattr(self, name) >= 1, f"sampled.{name}", getattr(self, name), ">= 1")
        _check(0 <= self.gbce_calibration <= 1, "sampled.gbce_calibration", self.gbce_calibration, "in [0, 1]")


@dataclass(frozen=True)
class ContrastiveSettings:
    """The contrastive term L_c."""

    similarity: Literal["cosine", "dot"] = "cosine"
    """f in L_c: the paper's cosine, or the dot product of the authors' code"""
    temperature: float = 1.0
    """f is divided by this"""

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature)
        _check(finite and self.temperature > 0, "contrastive.temperature", self.temperature, "a finite number > 0")


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam (betas 0.9 and 0.999, eps 1e-8, no weight decay)."""

    lr: float = 1e-3
    """learning rate"""
    max_gradient_norm: float = 0.0
    """gradients are scaled down to this norm over all parameters; 0: they are left as they are"""

    def __post_init__(self) -> None:
        norm = self.max_gradient_norm
        _check(norm >= 0 and math.isfinite(norm), "optimizer.max_gradient_norm", norm, "a finite number >= 0")
        _check(self.lr > 0 and math.isfinite(self.lr), "optimizer.lr", self.lr, "a finite number > 0")


@dataclass(frozen=True)
class TrainSettings:
    """Batches and stopping."""

    batch_size: int = 500
    """users in one global step, over all workers"""
    accumulation: int = 1
    """parts that a worker computes its share of a step in, one after another, to save memory"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """of matrix products; bfloat16 pays where the processor has it (GPUs, CPUs with AMX or AVX512-BF16)"""
    compile: bool = False
    """torch.compile for the encoders"""
    patience: int = 10
    """stop after this many epochs without a better validation NDCG_p@10"""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "train.batch_size", self.batch_size, ">= 1")
        _check(self.accumulation >= 1, "train.accumulation", self.accumulation, ">= 1")
        _check(self.patience >= 1, "train.patience", self.patience, ">= 1")


@dataclass(frozen=True)
class EvaluationSettings:
    """Ranking of the whole catalog minus seen items."""

    cutoffs: tuple[int, ...] = (5, 10, 20)
    """k of HR, NDCG, MRR and Coverage; 10 is always among them"""
    batch_size: int = 256
    """users scored at once by one worker"""

    def __post_init__(self) -> None:
        _check(
            10 in self.cutoffs and min(self.cutoffs) >= 1,
            "evaluation.cutoffs",
            self.cutoffs,
            "whole numbers >= 1, 10 among them (the headline and the early stopping use it)",
        )
        _check(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, ">= 1")


@dataclass(frozen=True)
class Settings:
    """Trains a sequential recommender on a prepared data set with Ray Train and logs the run to MLflow.

    Defaults come from conf/train/<config>.yaml and conf/model/<model>.yaml; any flag below overrides them.
    """

    dataset: str = "synthetic"
    """name of the prepared data set (make spark-prep DATASET=...)"""
    model: str = "pnfrec"
    """name of a file in conf/model/: which encoders exist, alpha, beta"""
    config: str = ""
    """name of a file in conf/train/; empty: the data set's name if there is such a file, else default"""
    num_workers: int | None = None
    """CPU workers; default: 2, or one per GPU where Ray sees GPUs"""
    num_gpus: int | None = None
    """GPUs to use, one worker each; 0 keeps to the CPU"""
    epochs: int = 100
    """most passes over the training users"""
    seed: int = 42
    """decides initialisation, order of users and dropout"""
    dry_run: bool = False
    """resolve everything, open the data, print the plan, train nothing"""
    resume: str = ""
    """checkpoint directory to continue from"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""
    output_dir: str = "runs"
    """directory of the runs' checkpoints; on several machines, a shared one"""
    experiment: str = "pnfrec-dist"
    """MLflow experiment"""
    item_table: Literal["auto", "replicated", "sharded"] = "auto"
    """every worker holds all rows, or each a range of them; auto: sharded where that sends less"""
    ray_address: str = ""
    """address of a running Ray cluster; empty: start Ray on this machine"""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    sampled: SampledSettings = field(default_factory=SampledSettings)
    contrastive: ContrastiveSettings = field(default_factory=ContrastiveSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        _check(self.num_workers is None or self.num_workers >= 1, "num_workers", self.num_workers, ">= 1")
        _check(self.num_gpus is None or self.num_gpus >= 0, "num_gpus", self.num_gpus, ">= 0")
        _check(self.epochs >= 1, "epochs", self.epochs, ">= 1")
        _check(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")
        _check(self.experiment.strip() != "", "experiment", self.experiment, "a name")
