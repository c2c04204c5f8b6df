import itertools

import numpy as np
import pytest
from pyspark.sql import SparkSession

from spark_jobs import quantile
from spark_jobs.quantile import histogram, order_statistics, ranked

pytestmark = pytest.mark.integration

SAMPLES = {
    "few distinct": lambda rng: rng.integers(1, 6, 1000).astype(float),
    "wide": lambda rng: rng.integers(0, 10**9, 3333).astype(float),
    "one far outlier": lambda rng: np.append(rng.random(2000), 1e15),
    "heavy tail": lambda rng: np.exp(rng.normal(0, 12, 2500)),
    "negative and zero": lambda rng: rng.normal(0, 1, 501).round(2),
    "all equal": lambda rng: np.full(17, 3.25),
    "one": lambda rng: np.array([-2.5]),
    "neighbours": lambda rng: np.nextafter(1.0, 2.0) ** np.arange(400),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_quantiles_are_numpys(spark: SparkSession, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Few buckets, so that many passes are needed."""
    monkeypatch.setattr(quantile, "BUCKETS", 32)
    values = SAMPLES[kind](np.random.default_rng(1))
    frame = spark.createDataFrame([(float(v),) for v in values], "value double").repartition(2).cache()
    fractions = [0.0, 0.37, 0.9, 1.0]
    found = order_statistics(frame, "value", fractions)
    assert found == [np.quantile(values, q, method="nearest") for q in fractions]
    assert order_statistics(frame, "value", [], method="median") == [np.median(values)]


def test_large_whole_numbers_stay_exact(spark: SparkSession) -> None:
    start = 1_600_000_000_000_000
    frame = spark.range(start, start + 1000).withColumnRenamed("id", "value")
    assert order_statistics(frame, "value", [0.9]) == [start + 899]


def test_histogram_holds_every_value_once_in_order(spark: SparkSession) -> None:
    values = np.random.default_rng(0).normal(0, 1, 500)
    frame = spark.createDataFrame([(float(v),) for v in values], "value double")
    buckets = histogram(frame, "value", float(values.min()), float(values.max()), 10)
    assert sum(b.count for b in buckets) == 500
    assert len(buckets) <= 11
    assert all(a.high < b.low for a, b in itertools.pairwise(buckets))


def test_quantiles_from_counts() -> None:
    counts = {5: 3, 1: 1, 9: 2}
    values = [1, 5, 5, 5, 9, 9]
    fractions = [0.0, 0.2, 0.5, 0.8, 1.0]
    assert list(ranked(counts, fractions)) == [np.quantile(values, q, method="nearest") for q in fractions]
