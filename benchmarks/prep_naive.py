"""python -m benchmarks.prep_naive LOG OUT: a straightforward Spark job for the protocol.

It uses Spark's own CSV reader and Parquet writer, joins by id, and sort_array(collect_list(struct)) for sequences. It
has no quarantine, no manifest and no checksums, and T is approximate. Session, memory and partitions are those of the
project's job.
"""

import sys
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.window import Window

from spark_jobs.session import local_cores, partitions_for, spark_session

THRESHOLD, MAX_HISTORY = 3.5, 200


def main(log: str, out: str) -> None:
    """Writes items, train, validation and test below `out`."""
    size = Path(log).stat().st_size
    spark = spark_session(input_bytes=size, partitions=partitions_for({log: size}, local_cores()))
    rows, split = supported(spark, log)
    rows = with_catalog(rows, split, out)
    train, holdout = rows.where(F.col("timestamp") < split), rows.where(F.col("timestamp") >= split)
    event = F.sort_array(F.collect_list(F.struct("timestamp", "position", "item_id", "is_positive"))).alias("events")
    train_users = enough(train).cache()
    sequences = train.join(train_users, "user", "left_semi").groupBy("user").agg(event)
    sequences.select("user", *histories(F.col("events"))).write.parquet(f"{out}/train")
    chosen = enough(holdout).join(train_users, "user", "left_semi")
    events = rows.join(chosen, "user", "left_semi").groupBy("user").agg(event)
    history = F.slice("events", 1, F.size("events") - 1)
    target = F.element_at("events", -1)
    evaluated = events.select(
        "user",
        *histories(history),
        F.array_distinct(F.transform(history, lambda e: e["item_id"])).alias("seen_items"),
        target["item_id"].alias("target_item"),
        target["is_positive"].alias("target_is_positive"),
        (F.xxhash64(F.lit(42), "user") % 2 == 0).alias("is_test"),
    ).cache()
    evaluated.where("not is_test and target_is_positive").write.parquet(f"{out}/validation")
    evaluated.where("is_test").write.parquet(f"{out}/test")
    spark.stop()


def supported(spark: SparkSession, log: str) -> tuple[DataFrame, int]:
    """The rows of items and users with enough support, and T."""
    schema = "user string, item string, rating double, timestamp bigint"
    rows = spark.read.csv(log, schema=schema, header=True).where("user is not null and item is not null")
    rows = rows.withColumn("position", F.monotonically_increasing_id())
    keys = ["user", "item", "rating", "timestamp"]
    rows = rows.groupBy(*keys).agg(F.min("position").alias("position")).cache()
    split = rows.agg(F.percentile_approx("timestamp", 0.9, 10_000)).collect()[0][0]
    before = rows.where(F.col("timestamp") < split)
    items = before.groupBy("item").agg(F.count_distinct("user").alias("n")).where("n >= 5").select("item")
    kept = before.join(items, "item", "left_semi")
    users = kept.groupBy("user").agg(F.count_distinct("item").alias("n")).where("n >= 5").select("user")
    rows = rows.join(items, "item", "left_semi").join(users, "user", "left_semi")
    rows = rows.withColumn("is_positive", F.col("rating") >= THRESHOLD).cache()
    return rows, split


def with_catalog(rows: DataFrame, split: int, out: str) -> DataFrame:
    """Writes the items; returns the rows with their ids."""
    catalog = (
        rows.where(F.col("timestamp") < split)
        .groupBy("item")
        .agg(F.count_if("is_positive").alias("num_positive"), F.count_if(~F.col("is_positive")).alias("num_negative"))
    )
    catalog = catalog.withColumn("item_id", F.row_number().over(Window.orderBy(F.col("item").cast("bigint")))).cache()
    catalog.write.parquet(f"{out}/items")
    return rows.join(catalog.select("item", "item_id"), "item")


def enough(part: DataFrame) -> DataFrame:
    """The users with two likes."""
    return part.groupBy("user").agg(F.count_if("is_positive").alias("n")).where("n >= 2").select("user")


def histories(events: Column) -> list[Column]:
    """The newest entries of each list."""
    newest = [
        F.slice(e, F.greatest(F.size(e) - MAX_HISTORY + 1, F.lit(1)), MAX_HISTORY)
        for e in (
            events,
            F.filter(events, lambda e: e["is_positive"]),
            F.filter(events, lambda e: ~e["is_positive"]),
        )
    ]
    return [
        F.transform(newest[0], lambda e: e["item_id"]).alias("items"),
        F.transform(newest[0], lambda e: e["is_positive"]).alias("is_positive"),
        F.transform(newest[1], lambda e: e["item_id"]).alias("positive_items"),
        F.transform(newest[2], lambda e: e["item_id"]).alias("negative_items"),
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
