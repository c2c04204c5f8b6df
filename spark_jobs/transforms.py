"""The protocol's steps, DataFrame -> DataFrame: feedback, filter, split, catalog (DESIGN: method, exactly).

An interaction has clean.INTERACTION (raw_user_id, raw_item_id, relevance, timestamp) and sources.POSITION.
"""

import numpy as np
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from pnfrec_dist.config import FilterSettings, SplitSettings
from pnfrec_dist.errors import InputError


def resolve_threshold(interactions: DataFrame, threshold: float | str) -> float:
    """The threshold as a number; "median" is the median of all relevances."""
    if threshold != "median":
        return float(threshold)
    return float(interactions.agg(F.median("relevance")).collect()[0][0])


def label_feedback(interactions: DataFrame, threshold: float) -> DataFrame:
    """Adds is_positive: relevance >= threshold."""
    return interactions.withColumn("is_positive", F.col("relevance") >= threshold)


def filter_support(interactions: DataFrame, settings: FilterSettings) -> DataFrame:
    """Drops items with too few distinct users, then users with too few distinct items."""
    filtered = _keep_supported(interactions, "raw_item_id", "raw_user_id", settings.min_users_per_item)
    filtered = _keep_supported(filtered, "raw_user_id", "raw_item_id", settings.min_items_per_user)
    while settings.iterate:
        filtered = filtered.localCheckpoint()
        before = filtered.count()
        filtered = _keep_supported(filtered, "raw_item_id", "raw_user_id", settings.min_users_per_item)
        filtered = _keep_supported(filtered, "raw_user_id", "raw_item_id", settings.min_items_per_user)
        if filtered.count() == before:
            break
    return filtered


def _keep_supported(interactions: DataFrame, key: str, other: str, least: int) -> DataFrame:
    support = interactions.groupBy(key).agg(F.count_distinct(other).alias("support"))
    kept = support.where(F.col("support") >= least).select(key)
    return interactions.join(kept, on=key, how="left_semi")


def split_timestamp(interactions: DataFrame, quantile: float) -> int:
    """T: the quantile of all timestamps, exactly, as the nearest observed value (half to even, as numpy's nearest).

    An approximate bracket first, then a count and a sort of the bracket alone.
    """
    low, high = (max(quantile - 0.005, 0.0), min(quantile + 0.005, 1.0))
    bounds, total = interactions.agg(F.percentile_approx("timestamp", [low, high], 2000), F.count("*")).collect()[0]
    wanted = round(quantile * (total - 1))
    time = F.col("timestamp")
    below = interactions.where(time < bounds[0]).count()
    inside = interactions.where(time.between(*bounds)).groupBy("timestamp").count().orderBy("timestamp")
    position = below
    for timestamp, count in inside.toLocalIterator():
        position += count
        if below <= wanted < position:
            return int(timestamp)
    raise AssertionError("the approximate bracket missed the quantile")


def split_by_time(interactions: DataFrame, timestamp: int) -> tuple[DataFrame, DataFrame]:
    """(train, holdout): before T; at or after T, without users or items that train does not have."""
    train = interactions.where(F.col("timestamp") < timestamp)
    holdout = (
        interactions.where(F.col("timestamp") >= timestamp)
        .join(train.select("raw_user_id").distinct(), on="raw_user_id", how="left_semi")
        .join(train.select("raw_item_id").distinct(), on="raw_item_id", how="left_semi")
    )
    return train, holdout


def users_with_positives(interactions: DataFrame, least: int) -> DataFrame:
    """raw_user_id of users with at least `least` positives."""
    positives = F.count_if("is_positive").alias("positives")
    return interactions.groupBy("raw_user_id").agg(positives).where(F.col("positives") >= least).select("raw_user_id")


def natural_order(name: str, all_whole_numbers: bool) -> list[Column]:
    """Sort keys of raw ids: as numbers when all of them are whole numbers, else as text."""
    return [F.col(name).cast("decimal(38,0)"), F.col(name)] if all_whole_numbers else [F.col(name)]


def are_whole_numbers(frame: DataFrame, name: str) -> bool:
    """Whether every value of a text column is a whole number."""
    return bool(frame.agg(F.bool_and(F.col(name).rlike(r"^-?\d{1,37}$"))).collect()[0][0])


def assign_holdout(holdout: DataFrame, settings: SplitSettings) -> DataFrame:
    """raw_user_id and is_test for every holdout user.

    permutation: users sorted by the natural order of their ids, p = RandomState(seed).permutation(U), the first
    ceil(U / 2) of p are test. hash: test when a 64-bit hash of (seed, id) is even.
    """
    users = holdout.select("raw_user_id").distinct()
    if settings.assignment == "hash":
        bit = F.xxhash64(F.lit(settings.seed).cast("bigint"), F.col("raw_user_id")) % 2
        return users.select("raw_user_id", (bit == 0).alias("is_test"))
    keys = natural_order("raw_user_id", are_whole_numbers(users, "raw_user_id"))
    ids = [row[0] for row in users.orderBy(*keys).collect()]
    order = np.random.RandomState(settings.seed).permutation(len(ids))
    test = {ids[i] for i in order[: -(-len(ids) // 2)]}
    spark = holdout.sparkSession
    return spark.createDataFrame([(u, u in test) for u in ids], "raw_user_id string, is_test boolean")


def catalog(train: DataFrame) -> DataFrame:
    """item_id (1..N, dense, in the natural order of raw ids), raw_item_id, num_positive, num_negative in train."""
    items = train.groupBy("raw_item_id").agg(
        F.count_if("is_positive").alias("num_positive"), F.count_if(~F.col("is_positive")).alias("num_negative")
    )
    order = Window.orderBy(*natural_order("raw_item_id", are_whole_numbers(items, "raw_item_id")))
    return items.select(F.row_number().over(order).alias("item_id"), "raw_item_id", "num_positive", "num_negative")


def require_rows(frame_rows: int, what: str, way_out: str) -> None:
    """Raises InputError when a stage leaves nothing."""
    if frame_rows == 0:
        raise InputError(f"{what} is empty; {way_out}")
