"""The whole preparation, in one Spark session and through the command."""

import dataclasses
import time
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
    SplitSettings,
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
SMALL = DatasetSettings(
    filter=FilterSettings(2, 2), feedback=FeedbackSettings(threshold=4), split=SplitSettings(min_positives=1)
)


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


def random_log(rng: np.random.Generator, users: int = 50, items: int = 40, rows: int = 1000) -> list[str]:
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
            spark.conf.set("spark.sql.files.maxPartitionBytes", 2000 * (order + 1))
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


LOG_CASES = st.fixed_dictionaries(
    {
        "log": st.integers(0, 2),
        "seed": st.integers(0, 2**32 - 1),
        "removed": st.floats(0, 0.5),
        "changed": st.floats(0, 0.5),
        "added": st.lists(
            st.tuples(st.integers(0, 59), st.integers(0, 49), st.integers(1, 5), st.integers(90, 130)), max_size=12
        ),
        "duplicates": st.sampled_from(["keep_all", "keep_first", "keep_last"]),
        "threshold": st.sampled_from([4.0, "median", "quantile"]),
        "iterate": st.booleans(),
    }
)


class LeakCheck:
    """Rows at or after T are added, changed and removed, and T stays: train shards and items are the same bytes."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark, self.root = spark, root
        self.untouched: dict[tuple, Manifest] = {}
        self.held = 0

    def run(self, examples: int) -> None:
        healthy = [HealthCheck.too_slow, HealthCheck.filter_too_much]
        options = settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=healthy
        )
        options(given(LOG_CASES)(self.check))()

    def check(self, case: dict) -> None:
        lines = random_log(np.random.default_rng(case["log"]))
        wanted = dataclasses.replace(
            SMALL,
            clean=CleanSettings(duplicates=case["duplicates"]),
            feedback=FeedbackSettings(case["threshold"], quantile=0.6 if case["threshold"] == "quantile" else None),
            filter=FilterSettings(2, 2, iterate=case["iterate"]),
        )
        key = (case["log"], case["duplicates"], case["threshold"], case["iterate"])
        try:
            if key not in self.untouched:
                self.untouched[key] = self.build(lines, wanted)
            before = self.untouched[key]
            after = self.build(self.altered(lines, case), wanted)
        except InputError as error:
            assume("is empty" not in str(error))  # nothing is left to evaluate: no data set, no leak
            raise
        assume(before.split_timestamp == after.split_timestamp)
        assert train_bytes(before) == train_bytes(after)
        assert before.threshold == after.threshold
        self.held += 1

    def altered(self, lines: list[str], case: dict) -> list[str]:
        rng = np.random.default_rng(case["seed"])
        altered = []
        for line in lines:
            user, item, _, moment = line.split(",")
            if int(moment) >= START + 90:
                if rng.random() < case["removed"]:
                    continue
                if rng.random() < case["changed"]:
                    line = f"{user},{item},{rng.integers(1, 6)},{moment}"
            altered.append(line)
        for user, item, rating, offset in case["added"]:
            place = int(rng.integers(0, len(altered) + 1))
            altered.insert(place, f"u{user},{item},{rating},{START + offset}")
        return altered

    def build(self, lines: list[str], wanted: DatasetSettings) -> Manifest:
        root = self.root / str(len(list(self.root.iterdir())))
        write_log(root / "raw" / "log.csv", lines)
        return build(self.spark, root / "raw", root / "out", wanted, partitions=1)


def test_nothing_after_the_split_reaches_train(spark: SparkSession, tmp_path: Path) -> None:
    check = LeakCheck(spark, tmp_path)
    check.run(2)
    assert check.held >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_after_the_split_reaches_train_in_200_cases(spark: SparkSession, tmp_path: Path) -> None:
    check = LeakCheck(spark, tmp_path)
    check.run(200)
    assert check.held >= 200
