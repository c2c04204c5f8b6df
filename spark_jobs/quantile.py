"""Exact order statistics of a column by a few counting passes; nothing is sorted, only counts come to the driver."""

from collections.abc import Iterator
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

BUCKETS = 32_768


Ends = tuple[float, float, int]


@dataclass(frozen=True)
class Bucket:
    """Values between low and high (both observed) and how many there are."""

    low: float
    high: float
    count: int


def histogram(frame: DataFrame, name: str, low: float, high: float, buckets: int) -> list[Bucket]:
    """The values of a numeric column in [low, high] over equal-width buckets: those that hold any, in order."""
    value = F.col(name)
    # Rounding keeps order, so buckets never overlap whatever the division does to the last digit. Halves, because the
    # difference of two finite numbers may be infinite; a range too narrow to divide holds few values anyway.
    width = (high / 2 - low / 2) / buckets
    place = F.floor((value.cast("double") / 2 - F.lit(low / 2)) / F.lit(width)) if width > 0 else value
    counted = (
        frame.where(value.between(low, high))
        .groupBy(place.alias("place"))
        .agg(F.min(value).alias("low"), F.max(value).alias("high"), F.count("*").alias("count"))
    )
    return sorted((Bucket(row["low"], row["high"], row["count"]) for row in counted.collect()), key=lambda b: b.low)


def order_statistics(
    frame: DataFrame, name: str, fractions: list[float], *, method: str = "nearest", ends: Ends | None = None
) -> list[float]:
    """Quantiles of a numeric column without nulls.

    method: "nearest" takes the nearest observed value, halves to even, as numpy's nearest; "median" takes the mean of
    the two middle values and ignores fractions. Each pass narrows the range that holds a rank by a factor of BUCKETS.
    ends: (lowest, highest, count) of the column where they are known.
    """
    low, high, total = ends or frame.agg(F.min(name), F.max(name), F.count(name)).collect()[0]
    if method == "median":
        pair = [_value_at(frame, name, rank, low, high) for rank in sorted({(total - 1) // 2, total // 2})]
        return [sum(pair) / len(pair)]
    return [_value_at(frame, name, round(q * (total - 1)), low, high) for q in fractions]


def _value_at(frame: DataFrame, name: str, rank: int, low: float, high: float) -> float:
    """The value at a 0-based rank."""
    below = 0
    while low < high:
        for bucket in histogram(frame, name, low, high, BUCKETS):
            if below <= rank < below + bucket.count:
                assert (bucket.low, bucket.high) != (low, high), "a pass must narrow the range"
                low, high = bucket.low, bucket.high
                break
            below += bucket.count
        else:
            raise AssertionError(f"rank {rank} is not among the {below} values counted")
    return low


def ranked(counts: dict[int, int], fractions: list[float]) -> Iterator[int]:
    """Quantiles (nearest) of values given as {value: count}."""
    total = sum(counts.values())
    for fraction in fractions:
        rank = round(fraction * (total - 1))
        for value in sorted(counts):
            rank -= counts[value]
            if rank < 0:
                yield value
                break
