"""What this library and the peers exchange by files: a task, histories, validation after each epoch, lists.

Peers import it in environments of their own, which have numpy and pyarrow. Item ids are 1 to num_items.

B histories of a batch, N items, K items of a list.
"""

import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TRAIN, COVER, VALIDATION, TEST = "train.parquet", "cover.parquet", "validation.parquet", "test.parquet"
LISTS, RESULT = "lists.parquet", "result.json"
SCORED_AT_ONCE = 256
LIST_LENGTH = 20


@dataclass(frozen=True)
class Task:
    """One training of a peer. `data` holds train.parquet, and other files if they are asked for."""

    data: str
    """directory with the files"""
    out: str
    """directory for lists.parquet and result.json"""
    num_items: int
    recipe: str
    hidden_size: int
    epochs: int
    num_blocks: int = 2
    num_heads: int = 1
    max_length: int = 50
    dropout: float = 0.1
    lr: float = 0.001
    batch_size: int = 500
    seed: int = 1
    threads: int = 2
    precision: str = "32-true"
    """Lightning's name: 32-true or bf16-mixed"""
    steps: int = 0
    """steps of an epoch; 0: all"""
    patience: int = 0
    """epochs without a better validation NDCG@10 after which the training ends; 0: no validation"""
    with_lists: bool = False
    """lists for the points of test.parquet"""
    with_user_lists: bool = False
    """times lists for all training users, in the peer's own way"""

    @classmethod
    def from_command_line(cls) -> "Task":
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    @property
    def trainer(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer."""
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        limit = {"limit_train_batches": self.steps} if self.steps else {}
        return {**quiet, **limit, "max_epochs": self.epochs, "devices": 1, "precision": self.precision}

    def histories(self, *names: str) -> "Histories":
        """Of one file, or of several, one after another."""
        table = pa.concat_tables([pq.read_table(Path(self.data) / name) for name in names])
        lists = table["items"].combine_chunks()
        return Histories(
            offsets=np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]),
            values=lists.flatten().to_numpy(),
            seen=table["seen"].to_pylist() if "seen" in table.column_names else [],
            target_B=table["target"].to_numpy() if "target" in table.column_names else None,
        )


@dataclass(frozen=True)
class Histories:
    """Liked items of users or points, oldest first."""

    offsets: np.ndarray
    values: np.ndarray
    seen: list[list[int]]
    """items that are not listed, of each point; empty for training users"""
    target_B: np.ndarray | None
    """the next item of each point; None in training and test"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.values[start:end]

    def padded(self, first: int, end: int, length: int, padding: int = 0) -> np.ndarray:
        """The newest `length` items of some histories, left-padded: [end - first, length]."""
        found = np.full((end - first, length), padding, dtype=np.int64)
        for row in range(first, end):
            newest = self.values[max(self.offsets[row], self.offsets[row + 1] - length) : self.offsets[row + 1]]
            if len(newest):
                found[row - first, -len(newest) :] = newest
        return found


Scores = Callable[[Histories, int, int], np.ndarray]
"""(histories, first, end) -> scores of items 1 to N for each of them, [end - first, N]."""


def _scored(histories: Histories, scores: Scores) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, scores without seen items) of each batch."""
    for first in range(0, len(histories), SCORED_AT_ONCE):
        end = min(first + SCORED_AT_ONCE, len(histories))
        scores_BN = np.array(scores(histories, first, end), dtype=np.float32)
        for row, seen in enumerate(histories.seen[first:end]):
            target = histories.target_B[first + row] if histories.target_B is not None else 0
            hidden = [item - 1 for item in seen if item != target]
            scores_BN[row, hidden] = -np.inf
        yield first, scores_BN


def ndcg_at_10(histories: Histories, scores: Scores) -> float:
    """Mean over points. Ties count against the target."""
    assert histories.target_B is not None
    gains = np.zeros(len(histories))
    for first, scores_BN in _scored(histories, scores):
        rows = np.arange(len(scores_BN))
        target_B = histories.target_B[first : first + len(rows)] - 1
        rank_B = (scores_BN >= scores_BN[rows, target_B][:, None]).sum(1)
        gains[first : first + len(rows)] = np.where(rank_B <= 10, 1 / np.log2(rank_B + 1.0), 0.0)
    return float(gains.mean())


@dataclass
class Progress:
    """Seconds and validation of each epoch, and whether the training should end."""

    task: Task
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    import_mib: float = 0.0
    peak_mib: float = 0.0
    user_lists_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.import_mib = _peak_mib()
        self._validation = self.task.histories(VALIDATION) if self.task.patience else None
        self._started = 0.0

    def epoch_begins(self) -> None:
        self._started = time.perf_counter()

    def epoch_ends(self) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        print(f"epoch {len(self.seconds)}: {self.seconds[-1]:.1f} s", flush=True)

    def validate(self, scores: Scores) -> bool:
        """Whether this epoch is the best so far."""
        if self._validation is None:
            return False
        self.scores.append(ndcg_at_10(self._validation, scores))
        print(f"validation NDCG@10 {self.scores[-1]:.4f}", flush=True)
        return self.scores[-1] == max(self.scores)

    @property
    def is_over(self) -> bool:
        best = int(np.argmax(self.scores)) if self.scores else len(self.seconds) - 1
        return len(self.seconds) >= self.task.epochs or (
            self.task.patience > 0 and len(self.seconds) - 1 - best >= self.task.patience
        )

    def write_lists(self, scores: Scores) -> None:
        """The best items of each test point: columns row, rank, item."""
        if not self.task.with_lists:
            return
        parts = []
        for first, scores_BN in _scored(self.task.histories(TEST), scores):
            best_BK = np.argpartition(-scores_BN, LIST_LENGTH, axis=1)[:, :LIST_LENGTH]
            order_BK = np.argsort(-np.take_along_axis(scores_BN, best_BK, 1), axis=1, kind="stable")
            best_BK = np.take_along_axis(best_BK, order_BK, 1)
            rows = np.repeat(np.arange(first, first + len(best_BK)), LIST_LENGTH)
            ranks = np.tile(np.arange(1, LIST_LENGTH + 1), len(best_BK))
            parts.append(pa.table({"row": rows, "rank": ranks, "item": best_BK.flatten() + 1}))
        pq.write_table(pa.concat_tables(parts), Path(self.task.out) / LISTS)

    def time_user_lists(self, make: Callable[[], object]) -> None:
        if self.task.with_user_lists:
            started = time.perf_counter()
            make()
            self.user_lists_seconds = time.perf_counter() - started

    def write(self) -> None:
        self.peak_mib = _peak_mib()
        (Path(self.task.out) / RESULT).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def epochs_callback(base: type, progress: Progress, scores_of: Callable[[Any], Scores]) -> Any:
    """A Lightning callback that times epochs, validates after each, and has the state of the best in `best`.

    base: the Callback of the peer's Lightning; scores_of: the module -> how it scores.
    """

    class Epochs(base):
        def __init__(self) -> None:
            self.progress, self.best = progress, None

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.progress.epoch_begins()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.progress.epoch_ends()
            if self.progress.validate(scores_of(pl_module)):
                self.best = copy.deepcopy(pl_module.state_dict())
            trainer.should_stop = self.progress.is_over

    return Epochs()


def _peak_mib() -> float:
    """Of this process, so far."""
    scale = 1 << 10 if sys.platform == "linux" else 1 << 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
