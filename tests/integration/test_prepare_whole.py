"""Preparation without a holdout (split.holdout none): all interactions train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.preparation import SMALL, build, prepared_in, random_log, write_log
from pyspark.sql import SparkSession

from pnfrec_dist.config.dataset_settings import SplitSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError

pytestmark = pytest.mark.integration
WHOLE = replace(SMALL, split=SplitSettings(holdout="none", min_positives=1))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return random_log(np.random.default_rng(3), rows=700)


def test_all_interactions_of_users_and_items_that_pass_the_filter_train(
    spark: SparkSession, tmp_path: Path, lines: list[str]
) -> None:
    write_log(tmp_path / "raw" / "log.csv", lines)
    manifest = build(spark, tmp_path / "raw", tmp_path / "tiny", WHOLE)
    columns: Any = ["user", "item", "rating", "time"]
    log: Any = pd.DataFrame([line.split(",") for line in lines], columns=columns)
    log = log.assign(place=range(len(log)), time=log.time.astype(int)).drop_duplicates(columns)
    log = log[log.groupby("item").user.transform("nunique") >= 2]
    log = log[log.groupby("user").item.transform("nunique") >= 2].sort_values(["time", "place"])
    table = pq.read_table(tmp_path / "tiny" / "train")
    raw_ids = ["", *pq.read_table(tmp_path / "tiny" / "items.parquet")["raw_item_id"].to_pylist()]
    found = {row["user_id"]: row for row in table.to_pylist()}
    expected = {user: rows for user, rows in log.groupby("user") if (rows.rating.astype(int) >= 4).any()}
    assert found.keys() == expected.keys() and len(found) > 20
    for user, rows in expected.items():
        assert [raw_ids[item] for item in found[user]["items"]] == rows.item.tolist()
        assert found[user]["is_positive"] == (rows.rating.astype(int) >= 4).tolist()
    assert manifest.split_timestamp == log.time.max() + 1
    assert manifest.counts["train"]["rows"] == len(log) and sorted(raw_ids[1:]) == sorted(log.item.unique())


def test_there_are_no_validation_and_no_test_users(spark: SparkSession, tmp_path: Path, lines: list[str]) -> None:
    write_log(tmp_path / "raw" / "log.csv", lines)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    conf = "source: {files: log.csv}\nfeedback: {threshold: 4}\nfilter: {min_users_per_item: 2}\n"
    (tmp_path / "conf" / "dataset" / "tiny.yaml").write_text(conf)
    args = ("--dataset", "tiny", "--raw", "raw", "--data-dir", "whole", "--split.holdout", "none")
    told = prepared_in(spark, tmp_path, *args)
    assert "no holdout: all interactions train, the newest is 1600" in told and "\n  validation" not in told
    assert "train --dataset tiny --final RUN --data-dir whole" in told
    assert "is up to date" in prepared_in(spark, tmp_path, *args)
    data = open_prepared(tmp_path / "whole" / "tiny")
    assert not data.has_points and not (tmp_path / "whole" / "tiny" / "test").exists()
    for split in ("validation", "test"):
        with pytest.raises(InputError, match=f"has no {split} users: it was prepared with split.holdout none"):
            data.holdout(split)
