"""Shared fixtures: a small prepared data set written without Spark, one Spark session, one Ray, an empty MLflow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as commands do before they import Ray
os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise workers wait for other programs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # GPU matmuls repeat; read once in a process

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from pnfrec_dist.data.schema import (
    HOLDOUT_SCHEMA,
    ITEMS_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    SPLITS,
    TRAIN_SCHEMA,
    USERS_SCHEMA,
    FileEntry,
    Manifest,
    settings_hash,
    write_manifest,
)
from pnfrec_dist.files.locations import sha256_of

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SHARED = ("spark", "ray_here", "server")
"""Session fixtures that take long to start."""


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Arrays that training maps into memory go to a directory of this session, not to the user's."""
    os.environ["PNFREC_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def interactions(row: dict[str, Any]) -> dict[str, object]:
    """Seen items, and the columns in which the last item of the history and the target are from T on."""
    liked = row["is_positive"][-1]
    return {
        "seen_items": sorted(set(row["items"])),
        "before_items": row["items"][:-1],
        "before_is_positive": row["is_positive"][:-1],
        "before_positive_items": row["positive_items"][:-1] if liked else row["positive_items"],
        "before_negative_items": row["negative_items"] if liked else row["negative_items"][:-1],
        "before_seen_items": sorted(set(row["items"][:-1])),
        "holdout_items": [row["items"][-1], row["target_item"]],
        "holdout_is_positive": [liked, row["target_is_positive"]],
        "holdout_timestamps": [row["target_timestamp"] - 2, row["target_timestamp"]],
    }


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """A row of users/."""
    return {**row, "seen_items": sorted(set(row["items"])), "num_holdout": 1}


def entry_of(directory: Path, path: Path) -> FileEntry:
    name, rows = path.relative_to(directory).as_posix(), pq.read_metadata(path).num_rows
    return FileEntry(name, path.stat().st_size, sha256_of(path), rows)


def catalog_rows(raw_ids: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"item_id": item, "raw_item_id": raw_id, "num_positive": item, "num_negative": 1}
        for item, raw_id in enumerate(raw_ids, start=1)
    ]


def _counts(users: int, catalog: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        "train": {"items": len(catalog), "rows": sum(row["num_positive"] + row["num_negative"] for row in catalog)},
        "quarantined": {"rows": 0},
        "train_users": {"users": users},
        "users": {"users": users + 1},
        "validation": {"users": 8, "positive_targets": 8, "negative_targets": 0, "holdout_interactions": 16},
        "test": {"users": 10, "positive_targets": 6, "negative_targets": 4, "holdout_interactions": 20},
    }


def write_prepared(
    directory: Path,
    users: int = 30,
    items: int = 12,
    seed: int = 0,
    raw_ids: Sequence[str] = (),
    *,
    has_holdout: bool = True,
) -> Path:
    """A complete prepared data set of random histories. Every third user has no negatives, one more no positives.

    raw_ids: of the items; empty: "1", "2", .... has_holdout: False: as split.holdout none, with the same train.
    """
    rng = np.random.default_rng(seed)

    def history(user: int) -> dict[str, object]:
        positive = rng.integers(1, items + 1, rng.integers(2, 9)).tolist()
        negative = [] if user % 3 == 0 else rng.integers(1, items + 1, rng.integers(1, 6)).tolist()
        return {
            "user_id": f"u{user:03d}",
            "items": positive + negative,
            "is_positive": [True] * len(positive) + [False] * len(negative),
            "positive_items": positive,
            "negative_items": negative,
        }

    def holdout(user: int, positive: bool) -> dict[str, object]:
        row = history(user)
        target = int(rng.integers(1, items + 1))
        row |= {"target_item": target, "target_is_positive": positive, "target_timestamp": 9}
        return row | interactions(row)

    train = [history(u) for u in range(users)]
    disliking = {**train[0], "user_id": "without likes", "positive_items": []}
    disliking |= {"items": [1, 3], "is_positive": [False, False], "negative_items": [1, 3]}
    parts = {
        "train": (TRAIN_SCHEMA, train),
        "validation": (HOLDOUT_SCHEMA, [holdout(u, True) for u in range(8)]),
        "test": (HOLDOUT_SCHEMA, [holdout(u, u % 3 != 0) for u in range(10)]),
        "users": (USERS_SCHEMA, [whole(row) for row in [*train, disliking]]),
        "quarantine": (QUARANTINE_SCHEMA, []),
    }
    parts = {name: of for name, of in parts.items() if has_holdout or name not in SPLITS[1:]}
    directory.mkdir(parents=True)
    files = []
    for part, (schema, rows) in parts.items():
        (directory / part).mkdir()
        for number, half in enumerate([rows[::2], rows[1::2]] if rows else [rows]):
            path = directory / part / f"part-{number:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(half, schema=schema), path)
            files.append(path)
    catalog = catalog_rows(raw_ids or [str(item) for item in range(1, items + 1)])
    pq.write_table(pa.Table.from_pylist(catalog, schema=ITEMS_SCHEMA), directory / "items.parquet")
    entries = [entry_of(directory, path) for path in [*files, directory / "items.parquet"]]
    split = {} if has_holdout else {"split": {"holdout": "none"}}
    settings = {"feedback": {"threshold": 4}, "max_history": 200, **split}
    counts = _counts(users, catalog)
    manifest = Manifest(SCHEMA_VERSION, "tiny", settings, settings_hash(settings), [], counts, 4.0, 5, "s", entries)
    write_manifest(directory, manifest)
    return directory


@pytest.fixture(scope="session")
def prepared_writer() -> Callable[..., Path]:
    """write_prepared(directory, users=30, items=12, seed=0)."""
    return write_prepared


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Directory of a fresh small prepared data set, named tiny."""
    return write_prepared(tmp_path / "prepared" / "tiny")


@pytest.fixture(scope="session")
def spark() -> Iterator[object]:
    """One local Spark session for all tests that use Spark in this process."""
    from spark_jobs.session import spark_session

    session = spark_session("local[2]", input_bytes=16 << 20)  # chooses the compiler for long sessions
    yield session
    session.stop()


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests that call commands in this process: they find it and leave it running.

    It starts on this machine even if the environment names a cluster.
    """
    from pnfrec_dist.cluster.session import ray_cluster
    from pnfrec_dist.cluster.worker_plan import WorkerOptions

    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
            stack.enter_context(ray_cluster(WorkerOptions()))
        yield


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Copies an MLflow database without runs into a directory; returns its URI. MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    template = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{template}").search_experiments()

    def put(directory: Path) -> str:
        return f"sqlite:///{shutil.copy(template, directory / 'mlflow.db')}"

    return put


def _group(nodeid: str) -> str:
    """The group of a test; a group runs in one process. It is the shared fixture of its file, else the file itself.

    Found in the file's text, because the scheduler's process collects no tests.
    """
    file = nodeid.partition("::")[0]
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((name for name in SHARED if re.search(rf"\b{name}: |\"{name}\"", text)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with shared fixtures first, then those that start processes, so that all processes of a test run end
    at about the same time."""
    ranks = {name: number for number, name in enumerate([*SHARED, "integration", "training"])}
    items.sort(key=lambda item: min(ranks.get(_group(item.nodeid), 9), ranks.get(item.path.parent.name, 9)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """One Spark session, one Ray and one MLflow server in all: files that use the same one share a process."""

    class ByShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByShared(config, log)


SOAK = pytest.StashKey[list[tuple[str, str, str]]]()


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """soak(what, found, wanted) adds a row to the table at the end."""
    return lambda *row: request.config.stash.setdefault(SOAK, []).append(row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(SOAK, [])
    if rows:
        terminalreporter.section("interruptions")
        width = [max(len(row[column]) for row in rows) for column in range(2)]
        for what, found, wanted in rows:
            terminalreporter.write_line(f"{what:<{width[0]}}  {found:<{width[1]}}  expected: {wanted}")
