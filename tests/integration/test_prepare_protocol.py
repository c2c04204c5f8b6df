"""Whole builds in one Spark session: the same bytes in any order, every list against the protocol."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.preparation import SMALL, START, build, random_log, write_log
from pyspark.sql import SparkSession

from pnfrec_dist.config.dataset_settings import CleanSettings
from pnfrec_dist.errors import InputError

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


def test_a_log_of_one_moment_has_nothing_before_the_split_and_says_so(spark: SparkSession, tmp_path: Path) -> None:
    write_log(tmp_path / "raw" / "log.csv", [f"u{n % 9},{n % 7},4,{START}" for n in range(63)])
    with pytest.raises(
        InputError, match="every interaction has the timestamp 2020-09-13 12:26:40 UTC, so no row can be before T"
    ):
        build(spark, tmp_path / "raw", tmp_path / "out")


Event = tuple[str, int, bool, int, int]
"""User, item, is positive, time, place in the source."""


def slow_events(lines: list[str], rule: str) -> tuple[list[Event], int]:
    """(the events that remain after duplicates, support before T and the items of train, in order; T)."""
    split_lines = [line.split(",") for line in dict.fromkeys(lines)]
    events = [(u, int(i), int(r) >= 4, int(t), place) for place, (u, i, r, t) in enumerate(split_lines)]
    split = int(np.quantile([event[3] for event in events], 0.9, method="nearest"))
    events.sort(key=lambda event: event[3:])
    before = [event for event in events if event[3] < split]
    items = {i for i in {e[1] for e in before} if len({e[0] for e in before if e[1] == i}) >= 2}
    users = {u for u in {e[0] for e in before} if len({e[1] for e in before if e[0] == u and e[1] in items}) >= 2}
    if rule == "keep_first":
        events = list({(e[0], e[1]): e for e in reversed(events)}.values())
    if rule == "keep_last":
        events = list({(e[0], e[1], e[3] < split): e for e in events}.values())
    events = sorted((e for e in events if e[1] in items and e[0] in users), key=lambda event: event[3:])
    in_train = {event[1] for event in events if event[3] < split}
    return [event for event in events if event[1] in in_train], split


def slow_lists(events: list[Event], items: list[int], newest: int) -> dict[str, list]:
    ids = {item: number for number, item in enumerate(items, 1)}
    return {
        "items": [ids[e[1]] for e in events][-newest:],
        "is_positive": [e[2] for e in events][-newest:],
        "positive_items": [ids[e[1]] for e in events if e[2]][-newest:],
        "negative_items": [ids[e[1]] for e in events if not e[2]][-newest:],
    }


@pytest.mark.parametrize("rule", ["keep_all", "keep_first", "keep_last"])
def test_every_list_is_the_protocols_by_each_rule_for_pairs(
    spark: SparkSession, tmp_path: Path, rule: Literal["keep_all", "keep_first", "keep_last"]
) -> None:
    lines = random_log(np.random.default_rng(11), users=60, rows=1500)
    write_log(tmp_path / "raw" / "log.csv", lines)
    wanted = dataclasses.replace(SMALL, clean=CleanSettings(duplicates=rule), max_history=4)
    manifest = build(spark, tmp_path / "raw", tmp_path / "out", wanted)
    events, split = slow_events(lines, rule)
    assert manifest.split_timestamp == split
    items = sorted({event[1] for event in events})
    assert pq.read_table(tmp_path / "out/items.parquet")["raw_item_id"].to_pylist() == [str(i) for i in items]
    train, holdout, targets = {}, {}, {}
    for user in {event[0] for event in events}:
        own = [event for event in events if event[0] == user]
        before, after = ([e for e in own if (e[3] < split) == side] for side in (True, False))
        if not any(e[2] for e in before):
            continue
        train[user] = slow_lists(before, items, 4)
        if any(e[2] for e in after):
            kept = list({e[1]: e for e in own}.values()) if rule == "keep_last" else own
            *history, target = sorted(kept, key=lambda event: event[3:])
            seen = sorted({items.index(e[1]) + 1 for e in history})
            holdout[user] = slow_lists(history, items, 4) | {"seen_items": seen}
            targets[user] = (items.index(target[1]) + 1, target[2], target[3])
    assert sum(len(lists["seen_items"]) > 4 for lists in holdout.values()) > 5, "a case that tries the limit"
    found = {part: pq.read_table(tmp_path / "out" / part).to_pylist() for part in ("train", "validation", "test")}
    assert {row.pop("user_id"): row for row in found["train"]} == train
    evaluated = {}
    for row in found["validation"] + found["test"]:
        user = row.pop("user_id")
        evaluated[user] = row
        assert tuple(row.pop(f"target_{name}") for name in ("item", "is_positive", "timestamp")) == targets[user]
        assert row == holdout[user]
    assert set(holdout) - set(evaluated) <= {user for user, target in targets.items() if not target[1]}
