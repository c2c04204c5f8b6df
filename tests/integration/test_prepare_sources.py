"""Files in the real format of each data set."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.preparation import Place, build, cleaned, events
from pyspark.sql import SparkSession

from pnfrec_dist.config.conf_files import load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from spark_jobs.clean import INTERACTION
from spark_jobs.raw_files import find_raw
from spark_jobs.sources import read_rows
from spark_jobs.text_rows import HEADER_AGAIN

pytestmark = pytest.mark.integration

NAMES = ["ml1m", "ml100k", "ml20m", "toys", "toys_ratings", "kion"]


def write_source(name: str, directory: Path, rows: list[tuple]) -> None:
    """The events as the named data set writes its file."""
    directory.mkdir(parents=True)
    days = [time.strftime("%Y-%m-%d", time.gmtime(t)) for *_, t in rows]
    ids = [(f"A{u:09d}XY", f"B{i:08d}") for u, i, *_ in rows]
    if name == "ml1m":
        lines = [f"{u}::{i}::{r:.0f}::{t}" for u, i, r, t in rows]
        file = "ratings.dat"
    elif name == "ml100k":
        lines = [f"{u}\t{i}\t{r:.0f}\t{t}" for u, i, r, t in rows]
        file = "u.data"
    elif name == "ml20m":
        lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r - 0.5},{t}" for u, i, r, t in rows)]
        file = "ratings.csv"
    elif name == "toys_ratings":
        lines = [f"{u},{i},{r},{t}" for (u, i), (*_, r, t) in zip(ids, rows, strict=True)]
        file = "ratings_Toys_and_Games.csv"
    elif name == "toys":
        keys = ("reviewerID", "asin", "helpful", "reviewText", "overall", "unixReviewTime", "reviewTime")
        lines = [
            json.dumps(dict(zip(keys, (u, i, [0, 0], 'said "no", é', r, t, "01 1, 2013"), strict=True)))
            for (u, i), (*_, r, t) in zip(ids, rows, strict=True)
        ]
        (directory / "reviews_Toys_and_Games_5.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        return
    else:
        assert name == "kion"
        head = "user_id,item_id,last_watch_dt,total_dur,watched_pct"
        lines = [
            head,
            *(f"{u},{i},{d},{100 * r:.0f},{20 * r - 20}" for (u, i, r, _), d in zip(rows, days, strict=True)),
        ]
        file = "interactions.csv"
    (directory / file).write_text("\n".join(lines) + "\n")


def slow_train_sequences(
    rows: list[tuple], threshold: float, scope_all_split: float
) -> dict[str, list[tuple[str, bool]]]:
    """user -> [(item, is positive)] of train in order of (time, place), by sorting in plain Python. No filter."""
    ordered = sorted(enumerate(rows), key=lambda pair: (pair[1][3], pair[0]))
    sequences: dict[str, list[tuple[str, bool]]] = {}
    for _, (user, item, relevance, moment) in ordered:
        if moment < scope_all_split:
            sequences.setdefault(user, []).append((item, relevance >= threshold))
    return {user: events for user, events in sequences.items() if sum(positive for _, positive in events) >= 2}


def canonical_rows(name: str, rows: list[tuple]) -> list[tuple[str, str, float, int]]:
    """(user, item, relevance, seconds) of each event, as read from the data set's format."""
    relevance = {"kion": lambda r: 20 * r - 20, "ml20m": lambda r: r - 0.5}.get(name, lambda r: r)
    user_id, item_id = (lambda u: str(u)), (lambda i: str(i))
    if name.startswith("toys"):
        user_id, item_id = (lambda u: f"A{u:09d}XY"), (lambda i: f"B{i:08d}")
    day = 86_400 if name == "kion" else 1
    return [(user_id(u), item_id(i), relevance(r), t // day * day) for u, i, r, t in rows]


@pytest.mark.parametrize("name", NAMES)
def test_each_source_is_read_in_its_real_shape(spark: SparkSession, tmp_path: Path, name: str) -> None:
    rows = events(np.random.default_rng(5))
    write_source(name, tmp_path / "raw", rows)
    wanted = load_conf("dataset", name, DatasetSettings())
    files = find_raw(name, Place(str(tmp_path / "raw"), wanted.source, wanted.titles))
    typed = cleaned(read_rows(spark, files, wanted.source), wanted).orderBy("position").collect()
    assert not [row for row in typed if row["reason"] is not None and row["reason"] != HEADER_AGAIN]
    found = [tuple(row[column] for column in INTERACTION) for row in typed if row["reason"] is None]
    assert found == canonical_rows(name, rows)


@pytest.mark.parametrize(
    "name", [name if name == "kion" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_each_source_becomes_the_protocols_sequences(spark: SparkSession, tmp_path: Path, name: str) -> None:
    rows = events(np.random.default_rng(5))
    write_source(name, tmp_path / "raw", rows)
    wanted = load_conf("dataset", name, DatasetSettings())
    assert wanted.filter.scope == "all" and wanted.split.assignment == "permutation", "as the paper"
    manifest = build(spark, tmp_path / "raw", tmp_path / "out", wanted)
    assert manifest.counts["read"]["rows"] == manifest.counts["interactions"]["rows"] == len(rows)
    canonical = canonical_rows(name, rows)
    times = [t for *_, t in canonical]
    assert manifest.split_timestamp == np.quantile(times, 0.9, method="nearest")
    expected = slow_train_sequences(canonical, float(wanted.feedback.threshold), manifest.split_timestamp)
    raw_ids = pq.read_table(tmp_path / "out" / "items.parquet")["raw_item_id"].to_pylist()
    found = {
        row["user_id"]: [(raw_ids[i - 1], p) for i, p in zip(row["items"], row["is_positive"], strict=True)]
        for row in pq.read_table(tmp_path / "out" / "train").to_pylist()
    }
    assert found == expected


def test_the_larger_movielens_are_read_as_ml20m_is() -> None:
    def layout(name: str) -> dict:
        return load_conf("dataset", name, DatasetSettings()).prepared()

    assert layout("ml25m") == layout("ml32m") == layout("ml20m")


def test_every_data_set_of_the_paper_states_its_row() -> None:
    known = {"ml1m": (6040, 3412, 999_611, 42), "ml20m": (138_493, 18_345, 19_984_024, 50)}
    known |= {"toys": (19_412, 11_924, 167_597, 38), "kion": (302_256, 10_348, 4_279_866, 40)}
    for name, row in known.items():
        expected = load_conf("dataset", name, DatasetSettings()).expected
        assert (expected.users, expected.items, expected.actions, expected.negative_percent) == row
