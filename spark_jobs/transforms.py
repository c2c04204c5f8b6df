"""The protocol's steps, DataFrame -> DataFrame: feedback, filter, split, catalog.

An interaction has clean.INTERACTION (raw_user_id, raw_item_id, relevance, timestamp) and position. All rows of a user
are in one partition (repeats.accepted). Grouping and joining by user keep it so, and only small tables are shuffled.
"""

import numpy as np
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import FeedbackSettings, FilterSettings, SplitSettings
from pnfrec_dist.errors import InputError
from spark_jobs.feedback import NEGATIVE_LABEL, POSITIVE_LABEL
from spark_jobs.quantile import Bucket, order_statistics

BROADCAST_ROWS = 2_000_000
"""Tables of up to this many items are broadcast to every executor; larger ones are joined by a shuffle."""


def settled(table: DataFrame) -> DataFrame:
    """A table of users or items, computed now and cut off from its query plan.

    Cached tables keep their whole plan, and each join of tables derived from each other doubles it: planning took most
    of a small build. Two copies of every block are kept, so that no block is lost with one executor.
    """
    return table.localCheckpoint(storageLevel=StorageLevel.MEMORY_AND_DISK_2)


def resolve_threshold(interactions: DataFrame, feedback: FeedbackSettings) -> float:
    """The threshold as a number. interactions: those before T, so that no later row can change a label."""
    rule = feedback.threshold
    if rule == "labels" or feedback.positive:
        return (POSITIVE_LABEL + NEGATIVE_LABEL) / 2
    if rule == "median":
        return order_statistics(interactions, "relevance", [0.5], method="median")[0]
    if rule == "quantile":
        assert feedback.quantile is not None
        return order_statistics(interactions, "relevance", [feedback.quantile])[0]
    return float(rule)


def label_feedback(interactions: DataFrame, threshold: float) -> DataFrame:
    """Adds is_positive: relevance >= threshold."""
    return interactions.withColumn("is_positive", F.col("relevance") >= threshold)


def split_timestamp(interactions: DataFrame, quantile: float, counted: list[Bucket] | None = None) -> int:
    """T: the quantile of all timestamps, exactly, as the nearest observed value (half to even, as numpy's nearest).

    counted: all timestamps in buckets, if they were counted before.
    """
    return int(order_statistics(interactions, "timestamp", [quantile], counted=counted)[0])


def before(interactions: DataFrame, timestamp: int) -> DataFrame:
    """The interactions before T, from which train is built."""
    return interactions.where(F.col("timestamp") < timestamp)


class Support:
    """The items and users that pass the filter. Their support is counted over some interactions."""

    def __init__(self, counted: DataFrame, settings: FilterSettings) -> None:
        pairs = counted.select("raw_user_id", "raw_item_id").distinct()
        self.items, self.users = self._pass(pairs, settings)
        while settings.iterate:
            sizes = (self.items.count(), self.users.count())
            self.items, self.users = self._pass(self.filter(pairs), settings)
            if (self.items.count(), self.users.count()) == sizes:
                break

    def _pass(self, pairs: DataFrame, settings: FilterSettings) -> tuple[DataFrame, DataFrame]:
        """Items first, then users, by the items that passed."""
        items = settled(_supported(pairs, "raw_item_id", settings.min_users_per_item))
        left = pairs.join(small(items), on="raw_item_id", how="left_semi")
        return items, settled(_supported(left, "raw_user_id", settings.min_items_per_user))

    def filter(self, interactions: DataFrame) -> DataFrame:
        """The interactions of items and users that pass."""
        return self.of_users(interactions.join(small(self.items), on="raw_item_id", how="left_semi"))

    def of_users(self, interactions: DataFrame) -> DataFrame:
        """The interactions of users that pass."""
        return interactions.join(self.users.hint("merge"), on="raw_user_id", how="left_semi")


def _supported(pairs: DataFrame, key: str, least: int) -> DataFrame:
    return pairs.groupBy(key).agg(F.count("*").alias("support")).where(F.col("support") >= least).select(key)


def small(items: DataFrame) -> DataFrame:
    """A settled table of items, marked for broadcast if it is small enough."""
    return F.broadcast(items) if items.count() <= BROADCAST_ROWS else items


def natural_order(name: str, all_whole_numbers: bool) -> list[Column]:
    """Sort keys of raw ids: as numbers if all of them are whole numbers, else as text."""
    return [F.col(name).cast("decimal(38,0)"), F.col(name)] if all_whole_numbers else [F.col(name)]


def are_whole_numbers(frame: DataFrame, name: str) -> bool:
    """Whether every value of a text column is a whole number."""
    return bool(frame.agg(F.bool_and(F.col(name).rlike(r"^-?\d{1,37}$"))).collect()[0][0])


def number_items(items: DataFrame) -> DataFrame:
    """raw_item_id and item_number: 1, 2, ... in the natural order of raw ids."""
    order = Window.orderBy(*natural_order("raw_item_id", are_whole_numbers(items, "raw_item_id")))
    return items.select("raw_item_id", F.row_number().over(order).alias("item_number"))


def by_number(interactions: DataFrame, numbers: DataFrame, partitions: int) -> DataFrame:
    """Interactions of the numbered items, with item_number. All rows of a user stay in one partition."""
    return _exchange_item(interactions, numbers, "raw_item_id", partitions)


def _exchange_item(interactions: DataFrame, items: DataFrame, name: str, partitions: int) -> DataFrame:
    """Replaces the column `name` by the other columns of `items`; rows of items not in `items` are dropped."""
    few = items.count() <= BROADCAST_ROWS
    found = interactions.join(F.broadcast(items) if few else items, on=name, how="inner").drop(name)
    return found if few else found.repartition(partitions, "raw_user_id")


def count_items(labelled: DataFrame, split: int) -> DataFrame:
    """One row per item_number: num_positive and num_negative in train, rows and positives in total.

    Also the smallest and largest relevance (low, high) and timestamp (first, last).
    """
    is_train, is_positive = F.col("timestamp") < split, F.col("is_positive")
    return labelled.groupBy("item_number").agg(
        F.count_if(is_train & is_positive).alias("num_positive"),
        F.count_if(is_train & ~is_positive).alias("num_negative"),
        F.count("*").alias("rows"),
        F.count_if(is_positive).alias("positives"),
        F.min("relevance").alias("low"),
        F.max("relevance").alias("high"),
        F.min("timestamp").alias("first"),
        F.max("timestamp").alias("last"),
    )


def catalog(counted: DataFrame, numbers: DataFrame) -> DataFrame:
    """Train's items: item_id (1..N, in the order of numbers), item_number, raw_item_id, num_positive, num_negative."""
    items = counted.where(F.col("num_positive") + F.col("num_negative") > 0).join(
        numbers, on="item_number", how="inner"
    )
    item_id = F.row_number().over(Window.orderBy("item_number")).alias("item_id")
    return items.select(item_id, "item_number", "raw_item_id", "num_positive", "num_negative")


def encode(interactions: DataFrame, items: DataFrame, partitions: int) -> DataFrame:
    """Interactions of the catalog's items, with item_id. All rows of a user stay in one partition."""
    return _exchange_item(interactions, items.select("item_number", "item_id"), "item_number", partitions)


def is_in_train() -> Column:
    """Users with rows in train; the holdout rows of other users are dropped."""
    return F.col("train_rows") > 0


def is_train_user(least: int) -> Column:
    """Users in the train shards, which are those with at least `least` positives in train."""
    return is_in_train() & (F.col("train_positives") >= least)


def is_holdout_user() -> Column:
    """Users with rows on both sides of T. They are halved into validation and test."""
    return is_in_train() & (F.col("holdout_rows") > 0)


def assign_holdout(users: DataFrame, settings: SplitSettings) -> DataFrame:
    """raw_user_id and is_test for holdout users.

    permutation: users sorted by the natural order of their ids, p = RandomState(seed).permutation(U), the first
    ceil(U / 2) of p are test. hash: test when a 64-bit hash of (seed, id) is even.
    """
    users = users.select("raw_user_id")
    if settings.assignment == "hash":
        bit = F.xxhash64(F.lit(settings.seed).cast("bigint"), F.col("raw_user_id")) % 2
        return users.select("raw_user_id", (bit == 0).alias("is_test"))
    keys = natural_order("raw_user_id", are_whole_numbers(users, "raw_user_id"))
    ids = [row[0] for row in users.orderBy(*keys).collect()]
    order = np.random.RandomState(settings.seed).permutation(len(ids))
    test = {ids[i] for i in order[: -(-len(ids) // 2)]}
    return users.sparkSession.createDataFrame([(u, u in test) for u in ids], "raw_user_id string, is_test boolean")


def require_any(frame_rows: int, settings: FilterSettings) -> None:
    """Raises InputError if the filter leaves no rows."""
    least = {"min-users-per-item": settings.min_users_per_item, "min-items-per-user": settings.min_items_per_user}
    flags = " or ".join(f"--filter.{name} ({value})" for name, value in least.items())
    require_rows(frame_rows, "the data set after the filter", f"lower {flags}")


def require_rows(frame_rows: int, what: str, way_out: str) -> None:
    """Raises InputError if a stage leaves no rows."""
    if frame_rows == 0:
        raise InputError(f"{what} is empty; {way_out}")
