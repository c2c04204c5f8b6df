"""Times of logs as people have them: read right, or refused in one line."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.logs import ITEMS, PARQUET, RATINGS, ROWS, SPLIT, TIMES, USERS, Log

pytestmark = pytest.mark.integration


def spelled(pattern: str) -> list[str]:
    return [datetime.fromtimestamp(t, UTC).strftime(pattern) for t in TIMES]


TIME_TEXTS = {
    "EEE MMM dd HH:mm:ss Z yyyy": "%a %b %d %H:%M:%S +0000 %Y",
    "EEE, dd MMM yyyy HH:mm:ss Z": "%a, %d %b %Y %H:%M:%S +0000",
    "MM/dd/yy HH:mm:ss": "%m/%d/%y %H:%M:%S",
    "MM/dd/yyyy hh:mm:ss a": "%m/%d/%Y %I:%M:%S %p",
    "yyyy-DDD HH:mm:ss": "%Y-%j %H:%M:%S",
    "yyyyMMddHHmmss": "%Y%m%d%H%M%S",
}


@pytest.mark.parametrize("pattern", TIME_TEXTS)
def test_times_as_text(log: Log, pattern: str) -> None:
    texts = spelled(TIME_TEXTS[pattern])
    log.write([(u, i, x, f'"{text}"') for (u, i, x, _), text in zip(ROWS, texts, strict=True)])
    assert [row["timestamp"] for row in log.cleaned(source={"time_format": pattern})] == TIMES


def test_a_zone_in_the_text_is_kept(log: Log) -> None:
    """As in Goodreads: 05:26:40 in the zone -0700 is 12:26:40 in UTC."""
    texts = [datetime.fromtimestamp(t - 7 * 3600, UTC).strftime("%a %b %d %H:%M:%S -0700 %Y") for t in TIMES]
    assert texts[0] == "Sun Sep 13 05:26:40 -0700 2020"
    log.write([(u, i, x, text) for (u, i, x, _), text in zip(ROWS, texts, strict=True)])
    found = log.cleaned(source={"time_format": "EEE MMM dd HH:mm:ss Z yyyy"})
    assert [row["timestamp"] for row in found] == TIMES


def test_years_of_two_digits_cross_the_century(log: Log) -> None:
    start = datetime(1999, 10, 1, tzinfo=UTC).timestamp()
    hours = [start + 8 * 3600 * n + 13 * 60 for n in range(600)]
    log.write(
        [
            (u, i, x, datetime.fromtimestamp(t, UTC).strftime("%m/%d/%y %H:%M"))
            for (u, i, x, _), t in zip(ROWS, hours, strict=True)
        ]
    )
    found = log.read(source={"time_format": "MM/dd/yy HH:mm"})
    assert found.split == int(np.quantile(hours, 0.9, method="nearest"))
    assert "after today" not in found.warnings


def test_times_after_today_are_warned_of(log: Log) -> None:
    log.write([(u, i, x, t + 10 * 365 * 86_400) for u, i, x, t in ROWS])
    log.prepare()
    assert (
        "WARNING: the newest timestamp is 2030-10-0" in log.warned
        and "after today; check source.time_format" in log.warned
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("yyyy-mm-dd", "the month (MM) is missing; mm are minutes"),
        ("MM-dd HH:mm", "the year (yyyy) is missing"),
        ("yyyy-MM", "the day (dd) is missing"),
        ("yyyy-MM-dd hh:mm:ss", "AM or PM (a) is missing; hours from 0 to 23 are HH, not hh"),
        ("yyyy-MM-dd mm:ss", "there are minutes (mm) without hours (HH)"),
        ("yyyy-MM-dd HH:ss", "there are seconds (ss) without minutes (mm)"),
        ("yyyy-MM-DD", "the day of the month is dd; DD is the day of the year"),
        ("sec", "the year (yyyy) is missing"),
        ("'yyyy' MM-dd", "the year (yyyy) is missing"),
    ],
)
def test_a_pattern_without_a_date_or_with_half_a_time_is_refused(log: Log, pattern: str, said: str) -> None:
    assert log.refused(source={"time_format": pattern}).endswith(
        f"here, {said}" + "; the month is MM" * ("hours (HH)" in said)
    )


def test_numbers_with_a_fraction_keep_their_order(log: Log) -> None:
    log.write([(u, i, x, f"{t}.{n % 8}25") for n, (u, i, x, t) in enumerate(ROWS)])
    found = log.read()
    at = TIMES.index(SPLIT)
    assert (found.split, found.unit) == (SPLIT * 10**6 + (at % 8) * 100_000 + 25_000, "us")


def test_nanoseconds(log: Log) -> None:
    log.write([(u, i, x, t * 10**9 + 1) for u, i, x, t in ROWS])
    found = log.cleaned(source={"time_format": "ns"})
    assert [row["timestamp"] for row in found] == [t * 10**9 + 1 for t in TIMES]


def test_times_as_spark_and_pandas_write_them(log: Log) -> None:
    moments = pa.array([t * 10**9 for t in TIMES], pa.timestamp("ns"))
    log.write_parquet(timestamp=moments)
    nanos = log.cleaned(source=PARQUET)
    assert [row["timestamp"] for row in nanos] == [t * 10**6 for t in TIMES]
    own = {"user": USERS, "item": ITEMS, "rating": RATINGS, "timestamp": moments}
    pq.write_table(pa.table(own), log.raw / "log.parquet", use_deprecated_int96_timestamps=True)
    assert pq.read_metadata(log.raw / "log.parquet").schema.column(3).physical_type == "INT96"
    assert log.cleaned(source=PARQUET) == nanos


def test_a_log_of_one_moment_is_told(log: Log) -> None:
    log.write([(u, i, x, 1_600_000_000) for u, i, x, _ in ROWS])
    assert "every interaction has the timestamp 2020-09-13 12:26:40 UTC, so no row can be before T" in log.refused()
    log.write([(u, i, x, 1_600_000_000 + max(0, n - 570)) for n, (u, i, x, _) in enumerate(ROWS)])
    said = log.refused()
    assert "95.2% of the interactions have this timestamp, the earliest; raise --split.quantile above" in said


def test_without_a_time_the_order_of_rows_is_the_order(log: Log) -> None:
    """Whatever the partitions: small blocks, and several files."""
    for name, rows in (("a.csv", ROWS[:250]), ("b.csv", ROWS[250:])):
        log.write([row[:3] for row in rows], name, "user,item,rating")
    source = {"timestamp": "none", "order": "rows"}
    by_row = log.prepare(source=source)
    whole = log.read(source=source)
    assert (by_row.split_timestamp, by_row.timestamp_unit) == (TIMES.index(SPLIT) + 2, "rows")
    assert f"T = {by_row.split_timestamp} (row {by_row.split_timestamp:,} of the source)" in log.printed
    log.spark.conf.set("spark.sql.files.maxPartitionBytes", "1000")
    try:
        cut = log.read(source=source)
    finally:
        log.spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert [row[:4] for row in cut.rows] == [row[:4] for row in whole.rows]
    assert [row["timestamp"] for row in whole.rows] == [*range(1, 251), *range(252, 602)]
    for name in ("a.csv", "b.csv"):
        (log.raw / name).unlink()
    pq.write_table(pa.table({"user": USERS, "item": ITEMS, "rating": RATINGS}), log.raw / "log.parquet")
    assert [row["timestamp"] for row in log.cleaned(source=source | PARQUET)] == list(range(600))
    said = log.refused(source={"timestamp": "none"})
    assert "source.order is 'time'; it must be rows, because source.timestamp is none" in said
