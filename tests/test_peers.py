"""What peers get and what is made of their lists: the same figures as this library's own evaluation gives."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import write_prepared

from benchmarks.peers import exchange
from benchmarks.peers.environments import PEERS, ROOT
from benchmarks.peers.exchange import Histories, Progress, Task
from benchmarks.peers.metric_cases import CUTOFFS, own_metrics, random_case, replay_cases
from benchmarks.peers.page import ratio_table
from benchmarks.peers.quality import of_peer
from benchmarks.peers.speed import Row
from benchmarks.peers.tasks import export, export_made
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.points import points_of
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.baselines import popularity_scores
from pnfrec_dist.evaluation.holdout import evaluate
from pnfrec_dist.evaluation.metrics import of_points
from pnfrec_dist.files.locations import Location

ITEMS = 1_000
SETTINGS = EvaluationSettings(cutoffs=(5, 10, 20))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return open_prepared(Location(write_prepared(tmp_path_factory.mktemp("prepared") / "tiny", items=ITEMS, seed=4)))


@pytest.fixture(scope="module")
def task(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Task:
    directory = tmp_path_factory.mktemp("exported")
    export(data, directory)
    return Task(str(directory), str(directory), ITEMS, "softmax", 8, 5, patience=2, with_lists=True)


COUNTS = np.concatenate([[0], np.random.default_rng(0).permutation(ITEMS) + 1])
"""Distinct, so that no two items tie."""


def scores(_: Histories, first: int, end: int) -> np.ndarray:
    return np.tile(COUNTS[1:].astype(float), (end - first, 1))


def test_a_peers_lists_have_the_figures_of_the_same_scores_here(data: PreparedData, task: Task) -> None:
    points = points_of(data, "test", "positive", SETTINGS)
    assert points is not None
    for ranked in (data.holdout("test"), points.part(np.arange(len(points)))):
        assert not any(t in ranked.seen.row(u) for u, t in enumerate(ranked.target_item))
    Progress(replace(task, patience=0)).write_lists(scores)
    found = of_peer("peer", data, task)
    of_scores = popularity_scores(COUNTS, World())
    users = evaluate(of_scores, data.holdout("test"), ITEMS, SETTINGS, World())
    many = evaluate(of_scores, points, ITEMS, SETTINGS, World())
    wanted = users.metrics | of_points(many.metrics)
    assert found.result.test == pytest.approx(wanted, abs=1e-12) and max(wanted.values()) > 0
    assert found.points is not None and list(found.points.user) == list(points.user_P)


def test_a_peer_stops_by_the_ndcg_of_the_liked_points(data: PreparedData, task: Task) -> None:
    points = points_of(data, "validation", "positive", SETTINGS)
    assert points is not None
    own = evaluate(popularity_scores(COUNTS, World()), points, ITEMS, SETTINGS, World()).metrics["ndcg_p_at_10"]
    assert exchange.ndcg_at_10(task.histories("validation.parquet"), scores) == pytest.approx(own, abs=1e-12)


def test_training_ends_after_epochs_without_a_better_validation(task: Task) -> None:
    progress, given = Progress(task), iter([0.1, 0.3, 0.2, 0.3])
    with patch.object(exchange, "ndcg_at_10", lambda *_: next(given)):
        told = []
        while not progress.is_over:
            progress.epoch_begins()
            progress.epoch_ends()
            told.append(progress.validate(scores))
    assert told == [True, True, False, True] and progress.scores == [0.1, 0.3, 0.2, 0.3]


def test_training_histories_and_windows_are_those_of_the_data(data: PreparedData, task: Task) -> None:
    histories, own = task.histories("train.parquet"), data.train("positive").history
    assert [list(row) for row in histories] == [list(own.row(user)) for user in range(len(own))]
    padded = histories.padded(0, len(histories), 3, padding=-1)
    for user, row in enumerate(padded):
        newest = list(own.row(user))[-3:]
        assert list(row) == [-1] * (3 - len(newest)) + newest


def test_a_made_catalog_is_whole(data: PreparedData, tmp_path: Path) -> None:
    export_made(data, tmp_path)
    rows = pq.read_table(tmp_path / "cover.parquet")["items"].to_pylist()
    assert {item for row in rows for item in row} == set(range(1, ITEMS + 1)) and {len(row) for row in rows} == {51}


def test_metrics_of_the_random_cases_against_a_plain_loop() -> None:
    """RePlay is in another environment; here a loop stands for it."""
    repeated = ties = missing = 0
    for seed in range(200):
        case = random_case(np.random.default_rng(seed))
        own = own_metrics(case)
        for group, asked in zip("pn", replay_cases(case, repeats=False), strict=True):
            lists = {int(user): [item for item, _ in items] for user, items in asked["lists"].items()}
            for k in CUTOFFS:
                places = [
                    lists.get(int(user), [])[:k].index(target) + 1 if target in lists.get(int(user), [])[:k] else 0
                    for user, target in asked["targets"].items()
                ]
                if places:
                    assert own[f"hr_{group}_at_{k}"] == pytest.approx(np.mean([p > 0 for p in places]), abs=1e-12)
                    gains = [1 / np.log2(p + 1) if p else 0 for p in places]
                    assert own[f"ndcg_{group}_at_{k}"] == pytest.approx(np.mean(gains), abs=1e-12)
                    mean = np.mean([1 / p if p else 0 for p in places])
                    assert own[f"mrr_{group}_at_{k}"] == pytest.approx(mean, abs=1e-12)
                listed = {item for items in lists.values() for item in items[:k]}
                assert own[f"coverage_at_{k}"] == pytest.approx(len(listed) / case.num_items, abs=1e-12)
            missing += len(lists) < len(case.target_U)
        keys = list(zip(case.user_R.tolist(), case.rank_R.tolist(), strict=True))
        ties += len(set(keys)) < len(keys)
        repeated += len(set(zip(case.user_R.tolist(), case.item_R.tolist(), strict=True))) < len(keys)
    assert min(repeated, ties, missing) > 50


def test_each_peer_is_compared_by_its_fastest_row_at_each_width() -> None:
    rows = [
        Row("sasrec_p, 1 worker", "auto", 10, 64, 100.0, 1.0),
        Row("sasrec_p, 2 workers", "auto", 10, 64, 200.0, 2.0),
        Row("A softmax", "32-true", 10, 64, 20.0, 3.0),
        Row("A softmax", "bf16-mixed", 10, 64, 40.0, 4.0),
        Row("B ce", "32-true", 10, 64, problem="more than 20 GB of memory"),
    ]
    table = ratio_table(rows)
    assert "| A softmax | 10 | 64 | 5.0x | 2.0x |" in table and "B ce" not in table


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_peers_train_and_are_evaluated(tmp_path: Path) -> None:
    """The whole command in small, on the built-in data; uses the environments that `make bench-peers` made."""
    environments = ROOT / "runs" / "peers" / "environments"
    if absent := [peer for peer in PEERS if not (environments / peer / "installed.txt").is_file()]:
        pytest.skip(f"no environment of {', '.join(absent)} in {environments}; `make bench-peers` makes them")
    work = tmp_path / "work"
    work.mkdir()
    (work / "environments").symlink_to(environments)
    prepared = [sys.executable, "-m", "spark_jobs", "--dataset", "synthetic", "--data-dir", str(tmp_path / "prepared")]
    subprocess.run(prepared, cwd=ROOT, check=True, capture_output=True)
    line = [sys.executable, "-m", "benchmarks.peers", "--data", str(tmp_path / "prepared" / "synthetic")]
    line += ["--work", str(work), "--parts", "speed", "quality", "metrics", "--widths", "16", "--hidden-size", "16"]
    line += ["--epochs", "2", "--seeds", "1", "--models", "sasrec_p", "--cases", "50"]
    done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in ("RecTools softmax", "RecTools esasrec", "RePlay ce", "RePlay sce", "sasrec_p"):
        assert done.stdout.count(f"| {name} |") + done.stdout.count(f"`{name}`") >= 3, done.stdout
    assert "| NDCG | 0e+00 |" in done.stdout
