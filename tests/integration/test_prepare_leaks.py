"""Nothing at or after T changes the train shards or the item list."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers.preparation import SMALL, START, build, random_log, train_bytes, write_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from pnfrec_dist.config.dataset_settings import CleanSettings, DatasetSettings, FeedbackSettings, FilterSettings
from pnfrec_dist.data.schema import Manifest
from pnfrec_dist.errors import InputError

pytestmark = pytest.mark.integration


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
    """Adds, changes and removes rows at or after T, without changing T: train shards and items keep the same bytes."""

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
            if "is empty" in str(error):  # nothing is left to evaluate: no data set, no leak
                return
            raise
        if before.split_timestamp != after.split_timestamp:
            return
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
    """One case with all changes, a quantile as threshold and repeated pairs. A slow test runs 200 cases."""
    check = LeakCheck(spark, tmp_path)
    added = [(user, 7 * user % 50, 1 + user % 5, 90 + user % 40) for user in range(0, 60, 5)]
    case = {"log": 0, "seed": 7, "removed": 0.3, "changed": 0.3, "added": added, "duplicates": "keep_last"}
    check.check(case | {"threshold": "quantile", "iterate": True})
    assert check.held == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_after_the_split_reaches_train_in_200_cases(spark: SparkSession, tmp_path: Path) -> None:
    check = LeakCheck(spark, tmp_path)
    check.run(250)
    assert check.held >= 200
