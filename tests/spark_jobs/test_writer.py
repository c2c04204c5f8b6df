import functools
import operator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pnfrec_dist.data.schema import SCHEMAS
from pnfrec_dist.files.locations import Location
from spark_jobs.sequences import TRAIN_COLUMNS
from spark_jobs.writer import shard_count, write_users


def test_shards_follow_from_counts_alone() -> None:
    assert shard_count(0, 0, 10, 64) == 1
    per_id = 2  # bytes of an id among 2^16 - 1 items
    entries = 10 * (64 << 20) // per_id
    assert shard_count(entries, 0, 2**16 - 1, 64) == 10
    assert shard_count(entries, 0, 2**16 - 1, 640) == 1


@pytest.mark.integration
def test_every_user_is_in_one_shard_and_shards_do_not_depend_on_partitions(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(f"u{n:03d}", [n + 1], [True], [n + 1], []) for n in range(200)]
    columns = f"user_id string, {TRAIN_COLUMNS}"
    written = []
    for partitions in (1, 7):
        frame = spark.createDataFrame(rows[::-1] if partitions == 7 else rows, columns).repartition(partitions)
        directory = Location(tmp_path / str(partitions) / "train")
        written.append(write_users(frame, directory, SCHEMAS["train"], 3))
    assert written[0] == written[1]
    assert [entry.path for entry in written[0]] == [f"train/part-0000{n}.parquet" for n in range(3)]
    shards = [pq.read_table(tmp_path / "1" / entry.path)["user_id"].to_pylist() for entry in written[0]]
    assert all(shard == sorted(shard) and shard for shard in shards)
    assert sorted(functools.reduce(operator.iadd, shards, [])) == [row[0] for row in rows]
