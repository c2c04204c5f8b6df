"""The Spark steps against tables made by hand, and against numpy."""

from collections.abc import Sequence

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from pnfrec_dist.config.dataset_settings import FeedbackSettings, FilterSettings, SplitSettings
from spark_jobs import repeats, transforms
from spark_jobs.sequences import user_sequences

pytestmark = pytest.mark.integration

COLUMNS = "raw_user_id string, raw_item_id string, relevance double, timestamp bigint, position bigint"
TEN_ROWS = [
    # user, item, rating, time: ann's rows 1 to 3 share a time, so their order in the source decides
    ("ann", "10", 5.0, 100),
    ("ann", "9", 2.0, 200),
    ("ann", "11", 4.0, 200),
    ("ann", "2", 3.0, 200),
    ("bob", "9", 4.0, 50),
    ("bob", "10", 1.0, 300),
    ("bob", "2", 5.0, 400),
    ("ann", "1", 4.5, 400),
    ("bob", "11", 4.0, 500),
    ("cid", "9", 4.0, 450),
]


def interactions(spark: SparkSession, rows: Sequence[tuple] = TEN_ROWS) -> DataFrame:
    """Rows with their position, in two shuffled partitions: results must not depend on the partition of a row."""
    placed = [(*row, position) for position, row in enumerate(rows)]
    order = np.random.RandomState(1).permutation(len(placed))
    return spark.createDataFrame([placed[i] for i in order], COLUMNS).repartition(2, "raw_user_id")


def as_set(frame: DataFrame, *columns: str) -> set[tuple]:
    return {tuple(row) for row in frame.select(*columns).collect()}


def by_user(frame: DataFrame) -> dict[str, dict]:
    return {row["user_id"]: row.asDict() for row in frame.collect()}


@pytest.fixture
def labelled(spark: SparkSession) -> DataFrame:
    return transforms.label_feedback(interactions(spark), 4.0)


def test_feedback_is_positive_from_the_threshold_on(labelled: DataFrame) -> None:
    assert as_set(labelled.where("is_positive"), "relevance") == {(5.0,), (4.0,), (4.5,)}


def test_median_threshold(spark: SparkSession) -> None:
    frame = interactions(spark)
    assert transforms.resolve_threshold(frame, FeedbackSettings()) == 4.0
    assert transforms.resolve_threshold(frame, FeedbackSettings(threshold=2.5)) == 2.5
    assert transforms.resolve_threshold(frame, FeedbackSettings(threshold="quantile", quantile=1.0)) == 5.0
    assert transforms.resolve_threshold(frame, FeedbackSettings(threshold="labels", positive_labels=("x",))) == 0.5


def test_filter_drops_items_first_then_users_once(spark: SparkSession) -> None:
    """Item z has one user and is dropped. Then user dan has one item and is dropped. Then item y has one user, but it
    stays: there is one pass for items and one for users."""
    rows = [
        ("ann", "x"),
        ("ann", "y"),
        ("bob", "x"),
        ("bob", "w"),
        ("cid", "w"),
        ("cid", "x"),
        ("dan", "y"),
        ("dan", "z"),
    ]
    frame = interactions(spark, [(u, i, 1.0, t) for t, (u, i) in enumerate(rows)])
    once = transforms.Support(frame, FilterSettings(2, 2, iterate=False)).filter(frame)
    kept = {("ann", "x"), ("ann", "y"), ("bob", "x"), ("bob", "w"), ("cid", "w"), ("cid", "x")}
    assert as_set(once, "raw_user_id", "raw_item_id") == kept
    stable = transforms.Support(frame, FilterSettings(2, 2, iterate=True)).filter(frame)
    assert as_set(stable, "raw_user_id", "raw_item_id") == {
        ("bob", "x"),
        ("bob", "w"),
        ("cid", "w"),
        ("cid", "x"),
    }


def test_support_counts_distinct_users_not_rows(spark: SparkSession) -> None:
    frame = interactions(
        spark, [("ann", "x", 1.0, 1), ("ann", "x", 1.0, 2), ("bob", "y", 1.0, 3), ("cid", "y", 1.0, 4)]
    )
    kept = transforms.Support(frame, FilterSettings(2, 1)).filter(frame)
    assert as_set(kept, "raw_item_id") == {("y",)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_split_timestamp_is_numpys_nearest_quantile(spark: SparkSession, seed: int, quantile: float) -> None:
    rng = np.random.default_rng(seed)
    times = rng.integers(0, [10, 1000, 10**9, 5][seed], [11, 5000, 3333, 2000][seed])
    frame = interactions(spark, [("u", "i", 1.0, int(t)) for t in times])
    assert transforms.split_timestamp(frame, quantile) == np.quantile(times, quantile, method="nearest")


def catalog(labelled: DataFrame, split: int) -> DataFrame:
    numbers = transforms.number_items(labelled.select("raw_item_id").distinct())
    counted = transforms.count_items(transforms.by_number(labelled, numbers, 2), split)
    return transforms.catalog(counted, numbers)


def encoded_of(labelled: DataFrame, split: int) -> DataFrame:
    """Interactions by item_id, as the build makes them."""
    items = catalog(labelled, split)
    numbers = items.select("raw_item_id", "item_number")
    return transforms.encode(transforms.by_number(labelled, numbers, 2), items, 2)


@pytest.mark.parametrize("broadcast_rows", [0, 100])
def test_holdout_loses_users_and_items_that_train_lacks(
    labelled: DataFrame, monkeypatch: pytest.MonkeyPatch, broadcast_rows: int
) -> None:
    monkeypatch.setattr(transforms, "BROADCAST_ROWS", broadcast_rows)
    encoded = encoded_of(labelled, 400)
    users = sequences_of(encoded, 400)
    before = transforms.before(encoded, 400)
    assert as_set(before, "raw_user_id", "timestamp") == {("ann", 100), ("ann", 200), ("bob", 50), ("bob", 300)}
    # cid is new, item 1 is new (ann's only one after T); item 2 is known from ann, item 11 too
    counted = {row["raw_user_id"]: tuple(row)[1:5] for row in users.collect()}
    assert counted == {"ann": (4, 2, 0, 0), "bob": (2, 1, 2, 2), "cid": (0, 0, 1, 1)}
    assert as_set(users.where(transforms.is_holdout_user()), "raw_user_id") == {("bob",)}


def test_catalog_is_dense_in_natural_order_with_train_counts(labelled: DataFrame) -> None:
    rows = sorted(as_set(catalog(labelled, 400), "item_id", "raw_item_id", "num_positive", "num_negative"))
    assert rows == [(1, "2", 0, 1), (2, "9", 1, 1), (3, "10", 1, 1), (4, "11", 1, 0)]


def test_catalog_of_text_ids_is_in_text_order(spark: SparkSession) -> None:
    frame = transforms.label_feedback(interactions(spark, [("u", i, 1.0, 1) for i in ("b10", "b9", "a")]), 1.0)
    assert sorted(as_set(catalog(frame, 2), "item_id", "raw_item_id")) == [(1, "a"), (2, "b10"), (3, "b9")]


PAIRS = [("ann", "x", 1.0, 1), ("ann", "x", 2.0, 5), ("ann", "x", 3.0, 5), ("ann", "x", 4.0, 9), ("ann", "y", 5.0, 2)]


@pytest.mark.parametrize(
    ("rule", "kept", "replaced"),
    [
        ("keep_all", {1.0, 2.0, 3.0, 4.0, 5.0}, set()),
        ("keep_first", {1.0, 5.0}, set()),
        ("keep_last", {3.0, 4.0, 5.0}, {3.0}),
    ],
)
def test_a_pair_met_again_stays_by_the_rule_and_train_never_looks_ahead(
    spark: SparkSession, rule: str, kept: set[float], replaced: set[float]
) -> None:
    frame = interactions(spark, PAIRS)
    collapsed = repeats.collapse_pairs(frame, rule, 6)
    assert as_set(collapsed, "relevance") == {(v,) for v in kept}
    assert collapsed.columns == frame.columns
    marked = repeats.mark_newest(collapsed.withColumnRenamed("raw_item_id", "item_id"), rule)
    own = {row[2]: (*row[3:], position) for position, row in enumerate(PAIRS)}
    newest = {v: (v not in replaced, *(own[4.0] if v in replaced else own[v])) for v in kept}
    found = as_set(marked, "relevance", "is_newest", "newest_timestamp", "newest_position")
    assert found == {(v, *marks) for v, marks in newest.items()}


@pytest.mark.parametrize("count", [7, 8])
def test_permutation_halves_sorted_numeric_ids(spark: SparkSession, count: int) -> None:
    ids = [3, 20, 100, 1, 7, 55, 8, 9][:count]
    frame = interactions(spark, [(str(u), "i", 1.0, 1) for u in ids])
    users = sorted(ids)
    order = np.random.RandomState(42).permutation(count)
    expected = {(str(users[p]), place < (count + 1) // 2) for place, p in enumerate(order)}
    assigned = transforms.assign_holdout(frame, SplitSettings(assignment="permutation"))
    assert as_set(assigned, "raw_user_id", "is_test") == expected


def test_hash_assignment_is_stable_roughly_half_and_seeded(spark: SparkSession) -> None:
    frame = interactions(spark, [(f"u{n}", "i", 1.0, 1) for n in range(400)])
    first, again, other = (
        as_set(transforms.assign_holdout(frame, SplitSettings(assignment="hash", seed=s)), "raw_user_id", "is_test")
        for s in (1, 1, 2)
    )
    assert first == again != other
    assert 150 < sum(is_test for _, is_test in first) < 250
    few = transforms.assign_holdout(frame.limit(10), SplitSettings(assignment="hash", seed=1))
    assert as_set(few, "raw_user_id", "is_test") <= first


def test_min_positives(labelled: DataFrame) -> None:
    users = sequences_of(encoded_of(labelled, 1000), 1000)
    assert as_set(users.where(transforms.is_train_user(3)), "raw_user_id") == {("ann",), ("bob",)}
    assert len(as_set(users.where(transforms.is_train_user(0)), "raw_user_id")) == 3


def numbered(frame: DataFrame) -> DataFrame:
    """item_id = the raw id as a number, to make sequences readable."""
    return frame.selectExpr("*", "cast(raw_item_id as int) as item_id")


def sequences_of(encoded: DataFrame, split: int, max_history: int = 200) -> DataFrame:
    return user_sequences(repeats.mark_newest(encoded, "keep_all"), max_history, split)


def lists_of(labelled: DataFrame, split: int, max_history: int, part: str) -> dict[str, dict]:
    """user -> the lists of one part."""
    rows = sequences_of(numbered(labelled), split, max_history).collect()
    return {row["raw_user_id"]: row[part].asDict() for row in rows if row[part]}


def test_train_sequences_by_hand_with_ties_in_time(labelled: DataFrame) -> None:
    users = lists_of(labelled, 1000, 200, "train")
    assert users["ann"] == {
        "items": [10, 9, 11, 2, 1],
        "is_positive": [True, False, True, False, True],
        "positive_items": [10, 11, 1],
        "negative_items": [9, 2],
    }
    assert users["bob"]["items"] == [9, 10, 2, 11]
    assert users["cid"]["negative_items"] == []


def test_each_list_keeps_its_own_newest_entries(labelled: DataFrame) -> None:
    users = lists_of(labelled, 1000, 2, "train")
    assert users["ann"]["items"] == [2, 1]
    assert users["ann"]["is_positive"] == [False, True]
    assert users["ann"]["positive_items"] == [11, 1]
    assert users["ann"]["negative_items"] == [9, 2]


def test_holdout_sequences_by_hand(labelled: DataFrame) -> None:
    users = lists_of(labelled, 400, 2, "holdout")
    assert users["bob"] == {
        "items": [10, 2],
        "is_positive": [False, True],
        "positive_items": [9, 2],
        "negative_items": [10],
        "seen_items": [2, 9, 10],
        "target_item": 11,
        "target_is_positive": True,
        "target_timestamp": 500,
        "before_items": [9, 10],
        "before_is_positive": [True, False],
        "before_positive_items": [9],
        "before_negative_items": [10],
        "before_seen_items": [9, 10],
        "holdout_items": [2, 11],
        "holdout_is_positive": [True, True],
        "holdout_timestamps": [400, 500],
    }
    assert users["ann"]["seen_items"] == [2, 9, 10, 11]
    assert "cid" not in users  # nothing before T
