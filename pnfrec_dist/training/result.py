"""The result of a finished run, as files next to its checkpoints: for reports, and for your own statistics.

result/result.json          settings, data, metrics and seconds of epochs, best epoch, test metrics, baselines' metrics
result/test_users.parquet   each test user's target rank, under the model and under each baseline
(experiments/logged_result.py adds curves and lists of some users)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.holdout import Evaluation
from pnfrec_dist.files.atomic import replaced, write_json
from pnfrec_dist.files.locations import reading
from pnfrec_dist.training.events import EpochDone, stored_epoch

DIRECTORY, RESULT, TEST_USERS = "result", "result.json", "test_users.parquet"
RESULT_VERSION = 1


@dataclass(frozen=True)
class Result:
    """What result.json holds."""

    settings: dict[str, Any]
    data_digest: str
    num_items: int
    num_workers: int
    epochs: list[EpochDone]
    best_epoch: int
    checkpoint: str
    """path of the best epoch's checkpoint, relative to the run's directory"""
    test: dict[str, float]
    floors: dict[str, dict[str, float]]
    """baseline (popularity, popularity_positive) -> its test metrics"""
    version: int = RESULT_VERSION

    @property
    def seconds(self) -> float:
        """Seconds of training, without validation and the start of workers."""
        return sum(epoch.seconds for epoch in self.epochs)


@dataclass(frozen=True)
class TestUsers:
    """What test_users.parquet holds, [U] each."""

    target_is_positive: np.ndarray
    target_rank: dict[str, np.ndarray]
    """"model", "popularity", "popularity_positive" -> 1-based target rank of each user"""


def write_result(
    run_dir: Path, result: Result, user_ids: pa.Array, is_positive: np.ndarray, ranked: dict[str, Evaluation]
) -> None:
    """Writes both files, result.json last. ranked: evaluations of "model" and of the baselines."""
    columns = {"user_id": user_ids, "target_is_positive": pa.array(is_positive)}
    columns.update({f"target_rank_{name}": pa.array(found.target_rank) for name, found in ranked.items()})
    directory = run_dir / DIRECTORY
    directory.mkdir(exist_ok=True)
    with replaced(directory / TEST_USERS) as draft:
        pq.write_table(pa.table(columns), draft)
    write_json(directory / RESULT, asdict(result), indent=1)


def read_result(run_dir: Path) -> Result | None:
    """The result in a run's directory, or None if there is none. Raises InputError if it cannot be read."""
    file = run_dir / DIRECTORY / RESULT
    if not file.is_file():
        return None
    with reading(file, "remove it"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != RESULT_VERSION:
            raise InputError(f"{file} has version {content['version']}, this program reads {RESULT_VERSION}; remove it")
        return Result(**{**content, "epochs": [stored_epoch(entry) for entry in content["epochs"]]})


def read_test_users(run_dir: Path) -> TestUsers:
    """Raises InputError if the file is missing or damaged."""
    file = run_dir / DIRECTORY / TEST_USERS
    with reading(file, f"remove {file.parent}"):
        table = pq.read_table(file)
        prefix = "target_rank_"
        ranks = {n.removeprefix(prefix): table[n].to_numpy() for n in table.column_names if n.startswith(prefix)}
        return TestUsers(table["target_is_positive"].to_numpy(), ranks)
