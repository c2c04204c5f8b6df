"""Whole builds in one Spark session: the same bytes in any order of files, blocks and partitions."""

from pathlib import Path

import numpy as np
import pytest
from helpers.preparation import build, random_log, write_log
from pyspark.sql import SparkSession

pytestmark = pytest.mark.integration


ORDERS = [(order, partitions) for order in range(5) for partitions in (1, 4)]


@pytest.mark.parametrize(
    "builds",
    [
        pytest.param([(1, 1), (4, 4)], id="2 builds"),
        pytest.param(ORDERS, id="10 builds", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_one_hash_whatever_the_order_of_files_blocks_and_partitions(
    spark: SparkSession, tmp_path: Path, builds: list[tuple[int, int]]
) -> None:
    """builds: (order, partitions) of each. Many times are equal, so the place in the source decides the order.

    The last order runs with adaptive execution, as large inputs do.
    """
    rng = np.random.default_rng(0)
    lines = [*random_log(rng, rows=900), "broken", "u1,2,x,1600000000", ""]
    parts = {f"part-{n}.csv": lines[n * 180 : (n + 1) * 180 + 20] for n in range(5)}
    digests, sources, quarantined = set(), set(), set()
    for order, partitions in builds:
        raw = tmp_path / f"raw-{order}"
        for name in rng.permutation(list(parts)):
            write_log(raw / str(name), parts[name])
        spark.conf.set("spark.sql.files.maxPartitionBytes", 4000 * (order + 1))
        spark.conf.set("spark.sql.files.openCostInBytes", 100 * order)
        spark.conf.set("spark.sql.adaptive.enabled", str(order == 4).lower())
        try:
            manifest = build(
                spark, raw, tmp_path / f"out-{order}-{partitions}", partitions=partitions, reverse=order % 2 == 1
            )
        finally:
            spark.conf.unset("spark.sql.files.maxPartitionBytes")
            spark.conf.unset("spark.sql.files.openCostInBytes")
            spark.conf.set("spark.sql.adaptive.enabled", "false")
        digests.add(manifest.digest)
        sources.add(tuple(manifest.sources))
        quarantined.add(manifest.counts["quarantined"]["rows"])
    assert len(sources) == len(digests) == len(quarantined) == 1
    assert quarantined.pop() >= 2
