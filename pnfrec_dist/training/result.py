"""The result of a finished run, as files next to its checkpoints: for reports, and for your own statistics.

result/result.json          settings, data, metrics and seconds of epochs, best epoch, test metrics, baselines' metrics;
                            without a holdout (--final), there are no test metrics and none of the other files
result/test_users.parquet   each test user's target rank, under the model and under each baseline
result/test_points.parquet  the same for many points: holdout interactions of each user
(experiments/logged_result.py adds curves and lists of some users)
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.data.points import Points
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.holdout import Evaluation
from pnfrec_dist.evaluation.metrics import of_points
from pnfrec_dist.files.atomic import replaced, write_json
from pnfrec_dist.files.locations import reading
from pnfrec_dist.training.events import EpochDone, stored_epoch

DIRECTORY, RESULT = "result", "result.json"
TEST_USERS, TEST_POINTS = "test_users.parquet", "test_points.parquet"
RANKS = "target_rank_"
"""Start of the names of columns with target ranks."""
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
    weights: dict[str, float] = field(default_factory=dict)
    """weights of the scores that validation has chosen: likes_share, gamma"""
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


@dataclass(frozen=True)
class TestPoints:
    """What test_points.parquet holds, [P] each."""

    user: np.ndarray
    """row of the user in test_users.parquet"""
    target_is_positive: np.ndarray
    target_rank: dict[str, np.ndarray]


@dataclass(frozen=True)
class Tested:
    """The test: evaluations of "model" and of the baselines, by name."""

    user_ids: pa.Array
    users: HoldoutData
    of_users: dict[str, Evaluation]
    points: Points | None
    of_points: dict[str, Evaluation]
    """empty without points"""

    def metrics(self, name: str) -> dict[str, float]:
        """Those of the last interactions, and those of many points."""
        found = self.of_points.get(name)
        return self.of_users[name].metrics | (of_points(found.metrics) if found else {})


def write_result(run_dir: Path, result: Result, tested: Tested | None) -> None:
    """Writes all files, result.json last. tested: None if the data have no test users."""
    directory = run_dir / DIRECTORY
    directory.mkdir(exist_ok=True)
    if tested is not None:
        _write_target_ranks(directory, tested)
    write_json(directory / RESULT, asdict(result), indent=1)


def _write_target_ranks(directory: Path, tested: Tested) -> None:
    users = {"user_id": tested.user_ids, "target_is_positive": pa.array(tested.users.target_is_positive)}
    _write_ranks(directory / TEST_USERS, users, tested.of_users)
    if tested.points is not None:
        points = {
            "user": pa.array(tested.points.user_P, pa.int32()),
            "place": pa.array(tested.points.place_P, pa.int32()),
            "target_is_positive": pa.array(tested.points.target_is_positive),
        }
        _write_ranks(directory / TEST_POINTS, points, tested.of_points)


def _write_ranks(file: Path, columns: dict[str, pa.Array], ranked: dict[str, Evaluation]) -> None:
    ranks = {f"{RANKS}{name}": pa.array(found.target_rank) for name, found in ranked.items()}
    with replaced(file) as draft:
        pq.write_table(pa.table(columns | ranks), draft)


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
        return TestUsers(table["target_is_positive"].to_numpy(), _ranks(table))


def read_test_points(run_dir: Path) -> TestPoints | None:
    """None if the training had no points. Raises InputError if the file is damaged."""
    file = run_dir / DIRECTORY / TEST_POINTS
    if not file.is_file():
        return None
    with reading(file, f"remove {file.parent}"):
        table = pq.read_table(file)
        return TestPoints(table["user"].to_numpy(), table["target_is_positive"].to_numpy(), _ranks(table))


def _ranks(table: pa.Table) -> dict[str, np.ndarray]:
    return {n.removeprefix(RANKS): table[n].to_numpy() for n in table.column_names if n.startswith(RANKS)}
