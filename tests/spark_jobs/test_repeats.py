"""Rows that later rows take back, against a plain loop."""

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import repeats

pytestmark = pytest.mark.integration
SCHEMA = (
    "raw_user_id string, raw_item_id string, relevance double, timestamp bigint, position bigint, "
    "undone int, undone_by int"
)
Row = tuple[str, str, float | None, int, int, int, int]


def random_rows(count: int) -> list[Row]:
    """Few users, items and times, so that ties and repeats are common. Two rules; each row may meet any of them."""
    rng = np.random.default_rng(0)
    draws = zip(*(rng.integers(0, high, count).tolist() for high in (5, 6, 40, 4, 4)), strict=True)
    return [
        (f"u{user}", f"i{item}", [None, 0.0, 1.0][place % 3], time, place, undone, by)
        for place, (user, item, time, undone, by) in enumerate(draws)
    ]


def expected_time(row: Row, rows: list[Row]) -> int | None:
    """The time of the next later row of the same user and item with one of the row's bits."""
    later = [r for r in rows if r[:2] == row[:2] and (r[3], r[4]) > (row[3], row[4]) and r[6] & row[5]]
    return min((r[3] for r in later), default=None)


def test_each_row_gets_the_time_of_the_next_row_that_takes_it_back(spark: SparkSession) -> None:
    rows = random_rows(2_000)
    found = repeats.with_undone_at(spark.createDataFrame(rows, SCHEMA), rules=2)
    times = {row["position"]: row["undone_at"] for row in found.collect()}
    assert times == {row[4]: expected_time(row, rows) for row in rows}
    assert sum(time is None for time in times.values()) > 100


def frame(spark: SparkSession, *undone_at: int | None) -> DataFrame:
    """One row a time, at times 0, 10, 20, ..., of one user and item."""
    rows = [("u", "i", "i", 1.0, 10 * place, place, undone) for place, undone in enumerate(undone_at)]
    schema = "raw_user_id string, raw_item_id string, item_id string, relevance double, timestamp bigint, "
    return spark.createDataFrame(rows, schema + "position bigint, undone_at bigint")


def test_what_is_taken_back_from_t_on_stays_in_train_alone(spark: SparkSession) -> None:
    """T = 30. Times 0, 10, 20 are train; 30, 40, 50 the holdout."""
    taken = frame(spark, None, 20, 30, 40, 50, None)
    assert [row["timestamp"] for row in repeats.standing(taken).orderBy("position").collect()] == [0, 50]
    kept = repeats.not_undone(taken, 30)
    found = {row["timestamp"]: row["is_undone"] for row in kept.collect()}
    assert found == {0: False, 20: True, 50: False}
    for rule, newest in (("keep_all", {0, 50}), ("keep_last", {50})):
        marked = repeats.mark_newest(kept, rule).where("is_newest")
        assert {row["timestamp"] for row in marked.collect()} == newest
    newest_undone = repeats.not_undone(frame(spark, None, None, 50), 30)
    marked = repeats.mark_newest(newest_undone, "keep_last").where("is_newest")
    assert {row["timestamp"] for row in marked.collect()} == {10}, "the newest of those that stand"
    marked = repeats.mark_newest(repeats.not_undone(frame(spark, 30, None, 0, None), 30), "keep_last")
    by = {row["timestamp"]: (row["newest_timestamp"], row["newest_position"]) for row in marked.collect()}
    assert by == {0: (0, 0), 10: (30, 3), 30: (30, 3)}, "a row that is taken back is not replaced, too"


def test_of_equal_rows_one_that_is_not_taken_back_stays(spark: SparkSession) -> None:
    typed = spark.createDataFrame(
        [("u", "i", 1.0, 5, 0, 1, 0), ("u", "i", 1.0, 5, 1, 0, 0), ("u", "j", 1.0, 5, 2, 1, 0)]
        + [("u", item, None, 9, place, 0, 1) for place, item in ((3, "i"), (4, "j"))],
        SCHEMA,
    ).withColumns({name: F.lit(None).cast("string") for name in ("reason", "left_out")})
    found = {row["raw_item_id"]: row for row in repeats.accepted(typed, 1, rules=1).collect()}
    assert {item: (row["undone_at"], row["copies"]) for item, row in found.items()} == {"i": (None, 2), "j": (9, 1)}
