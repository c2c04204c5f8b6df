"""The whole preparation, in one Spark session and through the command."""

import dataclasses
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from pnfrec_dist.config import (
    CleanSettings,
    DatasetSettings,
    FeedbackSettings,
    FilterSettings,
    SourceSettings,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.schema import Manifest
from pnfrec_dist.storage import Location
from spark_jobs.prepare import Build
from spark_jobs.sources import describe_sources, find_raw
from spark_jobs.verify import verify

pytestmark = pytest.mark.integration

START = 1_600_000_000
HEADER = "user,item,rating,timestamp"
SMALL = DatasetSettings(filter=FilterSettings(2, 2), feedback=FeedbackSettings(threshold=4))


@dataclasses.dataclass(frozen=True)
class Place:
    raw: str
    source: SourceSettings


def build(
    spark: SparkSession,
    raw: Path,
    out: Path,
    wanted: DatasetSettings = SMALL,
    *,
    partitions: int = 2,
    reverse: bool = False,
) -> Manifest:
    """One build in this session, checked as a whole; the files may be given in another order."""
    files = find_raw("tiny", Place(str(raw), wanted.source))
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    out.mkdir(parents=True)
    given = files[::-1] if reverse else files
    Build(spark, wanted, "tiny", given, partitions, time.monotonic()).run(Location(out), describe_sources(files))
    return verify(Location(out))


def random_log(rng: np.random.Generator, users: int = 25, items: int = 15, rows: int = 600) -> list[str]:
    """Lines with many ties in time, and an eighth of the rows at one moment, which is T."""
    times = np.where(rng.random(rows) < 0.15, 90, rng.integers(0, 90, rows) + 12 * (rng.random(rows) < 0.08))
    columns = (rng.integers(0, users, rows), rng.integers(0, items, rows), rng.integers(1, 6, rows), START + times)
    return [f"u{u},{i},{r},{t}" for u, i, r, t in zip(*columns, strict=True)]


def write_log(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")


def train_bytes(manifest: Manifest) -> dict[str, str]:
    return {e.path: e.sha256 for e in manifest.files if e.path.startswith(("train/", "items."))}


def test_one_hash_whatever_the_order_of_files_blocks_and_partitions(spark: SparkSession, tmp_path: Path) -> None:
    """5 orders x 1 and 4 partitions; ties in time everywhere, so that only the place in the source decides."""
    rng = np.random.default_rng(0)
    lines = [*random_log(rng, rows=900), "broken", "u1,2,x,1600000000", ""]
    parts = {f"part-{n}.csv": lines[n * 180 : (n + 1) * 180 + 20] for n in range(5)}
    digests, sources = set(), set()
    for order in range(5):
        raw = tmp_path / f"raw-{order}"
        for name in rng.permutation(list(parts)):
            write_log(raw / str(name), parts[name])
        for partitions in (1, 4):
            spark.conf.set("spark.sql.files.maxPartitionBytes", 600 * (order + 1))
            spark.conf.set("spark.sql.files.openCostInBytes", 100 * order)
            try:
                manifest = build(
                    spark, raw, tmp_path / f"out-{order}-{partitions}", partitions=partitions, reverse=order % 2 == 1
                )
            finally:
                spark.conf.unset("spark.sql.files.maxPartitionBytes")
                spark.conf.unset("spark.sql.files.openCostInBytes")
            digests.add(manifest.digest)
            sources.add(tuple(manifest.sources))
    assert len(sources) == 1 and manifest.counts["quarantined"]["rows"] >= 2
    assert len(digests) == 1


def log_strategy() -> st.SearchStrategy:
    row = st.tuples(st.integers(0, 29), st.integers(0, 19), st.integers(1, 5), st.integers(90, 130))
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**16),
            "removed": st.floats(0, 0.5),
            "added": st.lists(row, max_size=12),
            "moved": st.floats(0, 0.5),
            "duplicates": st.sampled_from(["keep_all", "keep_first", "keep_last"]),
            "threshold": st.sampled_from([4.0, "median", "quantile"]),
            "iterate": st.booleans(),
        }
    )


def check_no_leak(spark: SparkSession, root: Path, case: dict) -> None:
    """Rows at or after T are added, changed and removed, and T stays: train shards and items are the same bytes."""
    rng = np.random.default_rng(case["seed"])
    lines = random_log(rng)
    quantile = 0.6 if case["threshold"] == "quantile" else None
    wanted = dataclasses.replace(
        SMALL,
        clean=CleanSettings(duplicates=case["duplicates"]),
        feedback=FeedbackSettings(threshold=case["threshold"], quantile=quantile),
        filter=FilterSettings(2, 2, iterate=case["iterate"]),
    )
    altered = []
    for line in lines:
        user, item, _, moment = line.split(",")
        if int(moment) >= START + 90:
            if rng.random() < case["removed"] / 2:
                continue
            if rng.random() < case["moved"]:
                line = f"{user},{item},{rng.integers(1, 6)},{moment}"
        altered.append(line)
    for user, item, rating, offset in case["added"]:
        altered.insert(int(rng.integers(0, len(altered) + 1)), f"u{user},{item},{rating},{START + offset}")
    root.mkdir(parents=True)
    write_log(root / "a" / "log.csv", lines)
    write_log(root / "b" / "log.csv", altered)
    first = build(spark, root / "a", root / "out-a", wanted)
    try:
        second = build(spark, root / "b", root / "out-b", wanted)
    except InputError as error:
        assume("is empty" not in str(error))  # nothing is left to evaluate: no data set, no leak
        raise
    assume(first.split_timestamp == second.split_timestamp)
    assert train_bytes(first) == train_bytes(second)
    assert first.threshold == second.threshold


def no_leak_cases(spark: SparkSession, tmp_path: Path, examples: int) -> Counter:
    numbers = iter(range(10**6))
    checked: Counter = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(log_strategy())
    def check(case: dict) -> None:
        check_no_leak(spark, tmp_path / str(next(numbers)), case)
        checked["held"] += 1

    check()
    return checked


def test_nothing_after_the_split_reaches_train(spark: SparkSession, tmp_path: Path) -> None:
    assert no_leak_cases(spark, tmp_path, 4)["held"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_after_the_split_reaches_train_in_200_cases(spark: SparkSession, tmp_path: Path) -> None:
    assert no_leak_cases(spark, tmp_path, 200)["held"] >= 200
