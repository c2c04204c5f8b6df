"""Interactions -> one row per user, as pnfrec_dist.schema promises. Order is (timestamp, position in the source)."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.sources import POSITION


def train_sequences(interactions: DataFrame, max_history: int) -> DataFrame:
    """TRAIN_SCHEMA rows from interactions with item_id and is_positive."""
    users = interactions.groupBy("raw_user_id").agg(_events())
    return users.select(F.col("raw_user_id").alias("user_id"), *_histories(F.col("events"), max_history))


def holdout_sequences(interactions: DataFrame, max_history: int) -> DataFrame:
    """HOLDOUT_SCHEMA rows from all interactions (train and holdout) of holdout users.

    The last interaction is the target, everything before it is history.
    """
    users = interactions.groupBy("raw_user_id").agg(_events())
    events = F.col("events")
    split = users.select(
        F.col("raw_user_id").alias("user_id"),
        F.slice(events, 1, F.size(events) - 1).alias("history"),
        F.element_at(events, -1).alias("target"),
    )
    history, target = F.col("history"), F.col("target")
    return split.select(
        "user_id",
        *_histories(history, max_history),
        F.array_distinct(F.transform(history, lambda e: e["item_id"])).alias("seen_items"),
        target["item_id"].alias("target_item"),
        target["is_positive"].alias("target_is_positive"),
        target["timestamp"].alias("target_timestamp"),
    )


def _events() -> Column:
    """A user's interactions as an array of structs in total order."""
    event = F.struct("timestamp", *POSITION, "item_id", "is_positive")
    return F.sort_array(F.collect_list(event)).alias("events")


def _histories(events: Column, max_history: int) -> list[Column]:
    """The four list columns, each its newest max_history entries, oldest first."""
    positives = F.filter(events, lambda e: e["is_positive"])
    negatives = F.filter(events, lambda e: ~e["is_positive"])
    newest = _newest(events, max_history)
    return [
        F.transform(newest, lambda e: e["item_id"]).alias("items"),
        F.transform(newest, lambda e: e["is_positive"]).alias("is_positive"),
        F.transform(_newest(positives, max_history), lambda e: e["item_id"]).alias("positive_items"),
        F.transform(_newest(negatives, max_history), lambda e: e["item_id"]).alias("negative_items"),
    ]


def _newest(array: Column, count: int) -> Column:
    return F.slice(array, F.greatest(F.size(array) - count + 1, F.lit(1)), count)
