"""Exact order statistics of a column by a few counting passes. Nothing is sorted; the driver gets only counts."""

from collections.abc import Iterator
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

BUCKETS = 131_072


@dataclass(frozen=True)
class Bucket:
    """The number of values between low and high, which both occur."""

    low: float
    high: float
    count: int


def bucket_of(name: str, low: float, high: float, buckets: int) -> Column:
    """The number of a value's bucket, of equal-width buckets over [low, high]. It never falls as the value rises.

    The highest value may have a bucket of its own.
    """
    value = F.col(name)
    # Rounding keeps order, so buckets never overlap, even if the last digit of the division is wrong. Halves are used
    # because the difference of two finite numbers may be infinite. A range too narrow to divide has few values.
    width = (high / 2 - low / 2) / buckets
    return F.floor((value.cast("double") / 2 - F.lit(low / 2)) / F.lit(width)) if width > 0 else value


def histograms(frame: DataFrame, ranges: dict[str, tuple[float, float]], buckets: int) -> dict[str, list[Bucket]]:
    """For each column, its values in equal-width buckets: the non-empty buckets, in order.

    Only rows with every column in its range are counted, in one pass with at most (buckets + 1) ** columns groups.
    """
    for name, ends in ranges.items():
        frame = frame.where(F.col(name).between(*ends))
    places = [bucket_of(name, *ends, buckets).alias(f"place_{name}") for name, ends in ranges.items()]
    ends = [end(name).alias(f"{side}_{name}") for name in ranges for side, end in (("low", F.min), ("high", F.max))]
    rows = frame.groupBy(*places).agg(*ends, F.count("*").alias("count")).collect()
    found: dict[str, list[Bucket]] = {}
    for name in ranges:
        parts: dict[float, list[Bucket]] = {}
        for row in rows:
            bucket = Bucket(row[f"low_{name}"], row[f"high_{name}"], row["count"])
            parts.setdefault(row[f"place_{name}"], []).append(bucket)
        found[name] = [_together(parts[place]) for place in sorted(parts)]
    return found


def _together(parts: list[Bucket]) -> Bucket:
    return Bucket(min(b.low for b in parts), max(b.high for b in parts), sum(b.count for b in parts))


def histogram(frame: DataFrame, name: str, low: float, high: float, buckets: int) -> list[Bucket]:
    """histograms() of one column."""
    return histograms(frame, {name: (low, high)}, buckets)[name]


def order_statistics(
    frame: DataFrame,
    name: str,
    fractions: list[float],
    *,
    method: str = "nearest",
    counted: list[Bucket] | None = None,
) -> list[float]:
    """Quantiles of a numeric column without nulls.

    method: "nearest" takes the nearest observed value, halves to even, as numpy's nearest; "median" takes the mean of
    the two middle values and ignores fractions. Each pass narrows the range that holds a rank by a factor of BUCKETS.
    counted: all values of the column in buckets, in order, if they were counted before.
    """
    if counted is None:
        low, high, total = frame.agg(F.min(name), F.max(name), F.count(name)).collect()[0]
        counted = [Bucket(low, high, total)]
    total = sum(bucket.count for bucket in counted)
    if method == "median":
        pair = [_value_at(frame, name, rank, counted) for rank in sorted({(total - 1) // 2, total // 2})]
        return [sum(pair) / len(pair)]
    return [_value_at(frame, name, round(q * (total - 1)), counted) for q in fractions]


def _value_at(frame: DataFrame, name: str, rank: int, counted: list[Bucket]) -> float:
    """The value at a 0-based rank among those counted in buckets."""
    while True:
        for found in counted:
            if rank < found.count:
                break
            rank -= found.count
        else:
            raise AssertionError(f"{rank} more than the values counted")
        if found.low == found.high:
            return found.low
        counted = histogram(frame, name, found.low, found.high, BUCKETS)
        assert len(counted) > 1, "a pass must narrow the range"


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
