"""Made files in the exact schema and types of large public data sets, against the protocol in plain pandas."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.plain_protocol import COLUMNS, Frame, expected_build, require_equal
from helpers.preparation import build
from pyspark.sql import SparkSession

from benchmarks.yambda_like import FILE, write_yambda_like
from pnfrec_dist.config.conf_files import load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import override

pytestmark = pytest.mark.integration
Row = dict[str, Any]


def labelled(rows: list[Row], is_like: Callable[[Row], bool], is_dislike: Callable[[Row], bool]) -> Frame:
    """COLUMNS of the rows that are likes or dislikes, and `undone` if rows have it."""
    chosen = [{**row, "relevance": float(is_like(row))} for row in rows if is_like(row) or is_dislike(row)]
    frame = pd.DataFrame(chosen)
    frame[["user", "item"]] = frame[["user", "item"]].astype(str)
    return frame[[*COLUMNS, *(["undone"] if "undone" in frame else [])]]


def checked(spark: SparkSession, directory: Path, name: str, rows: Frame, **changes: Any) -> dict[str, dict[str, int]]:
    """Builds the raw files in directory/raw with the data set's own settings; returns the counts."""
    settings = load_conf("dataset", name, DatasetSettings())
    split = {"assignment": "permutation", "min_positives": 1}
    settings = override(settings, {"split": split, "filter": {"min_items_per_user": 2}, **changes}, name)
    manifest = build(spark, directory / "raw", directory / "out", settings)
    require_equal(directory / "out", manifest, expected_build(rows, settings))
    counts = manifest.counts
    stages = ("interactions", "quarantined", "deduplicated", "neither", "undone", "where")
    assert sum(counts[stage]["rows"] for stage in stages if stage in counts) == counts["read"]["rows"]
    return counts


def undone_at(rows: list[Row]) -> list[Row]:
    """The rows with `undone`: the time of the next unlike after a like, of the next undislike after a dislike."""
    found = []
    for place, row in enumerate(rows):
        by = {"like": "unlike", "dislike": "undislike"}.get(row["event"])
        undoing = (row["user"], row["item"], by)
        later = [r["time"] for r in rows[place + 1 :] if (r["user"], r["item"], r["event"]) == undoing]
        found.append({**row, "undone": later[0] if later else np.nan})
    return found


@pytest.mark.parametrize("name", ["yambda_50m"])
def test_yambda(spark: SparkSession, tmp_path: Path, name: str) -> None:
    """An unlike takes the like back, and only the like: a long listen stays."""
    (tmp_path / "raw").mkdir()
    write_yambda_like(tmp_path / "raw" / FILE, 4_000, 25, 120, seed=3)
    table = pq.read_table(tmp_path / "raw" / FILE)
    rng = np.random.default_rng(0)
    # Few of the generator's tracks are liked in so small a log, so some listens become other events.
    events, played = table["event_type"].to_pylist(), table["played_ratio_pct"].to_pylist()
    for place in np.flatnonzero(rng.random(len(events)) < 0.3):
        events[place] = str(rng.choice(["like", "dislike", "unlike", "undislike"]))
        played[place] = None
    kind = table.schema.field("event_type").type
    table = table.set_column(6, "event_type", pa.array(events).dictionary_encode().cast(kind))
    table = table.set_column(4, "played_ratio_pct", pa.array(played, pa.uint16()))
    pq.write_table(table, tmp_path / "raw" / FILE)
    names = ["user", "time", "item", "is_organic", "played", "length", "event"]
    rows = table.rename_columns(names).to_pylist()
    meant = labelled(
        undone_at(rows),
        lambda row: row["event"] == "like" or (row["played"] is not None and row["played"] >= 50),
        lambda row: row["event"] == "dislike",
    )
    counts = checked(spark, tmp_path, name, meant)
    assert counts["undone"]["rows"] > 50 and counts["neither"]["rows"] > 500
    assert meant.undone.notna().sum() > counts["undone"]["rows"], "some are taken back from T on, and stay in train"


def test_the_three_sizes_of_yambda_are_read_alike() -> None:
    sizes = [load_conf("dataset", f"yambda_{size}", DatasetSettings()) for size in ("50m", "500m", "5b")]
    assert len({(s.feedback, s.clean, s.filter, s.source.time_format) for s in sizes}) == 1


@pytest.mark.parametrize("flag", [pa.bool_(), pytest.param(pa.uint8(), marks=pytest.mark.slow)])
def test_vk_lsvd(spark: SparkSession, tmp_path: Path, flag: pa.DataType) -> None:
    """The order is week by week, although the directory test comes before train."""
    rng = np.random.default_rng(1)
    files = ["train/week_00.parquet", "train/week_01.parquet", "validation/week_02.parquet", "test/week_03.parquet"]
    small = ("place", "platform", "agent", "timespent")
    flags = ("like", "dislike", "share", "bookmark", "click_on_author", "open_comments")
    rows: list[Row] = []
    for file in files:
        count = 400
        columns: dict[str, pa.Array] = {
            "user_id": pa.array(rng.integers(0, 25, count) * 7919, pa.uint32()),
            "item_id": pa.array(rng.integers(0, 30, count) + 3_000_000_000, pa.uint32()),
        }
        columns |= {name: pa.array(rng.integers(0, 25, count), pa.uint8()) for name in small}
        columns |= {name: pa.array(rng.random(count) < 0.3).cast(flag) for name in flags}
        path = tmp_path / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=150)
        rows += pa.table(columns).to_pylist()
    named = [{**r, "user": r["user_id"], "item": r["item_id"], "time": place} for place, r in enumerate(rows)]
    meant = labelled(
        named,
        lambda row: not row["dislike"] and bool(row["like"] or row["share"] or row["bookmark"]),
        lambda row: bool(row["dislike"]),
    )
    counts = checked(spark, tmp_path, "vk_lsvd", meant)
    assert counts["neither"]["rows"] == len(rows) - len(meant) > 100


KUAIRAND = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


def test_kuairand(spark: SparkSession, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    directory = tmp_path / "raw" / "KuaiRand-Pure" / "data"
    directory.mkdir(parents=True)
    names = KUAIRAND.split(",")
    rows: list[Row] = []
    for start, dates in ((1_649_350_000, "4_08_to_4_21"), (1_650_560_000, "4_22_to_5_08")):
        part = []
        for place in range(700):
            row = dict.fromkeys(names, 0)
            row |= {name: int(rng.random() < 0.3) for name in names if name.startswith("is_") or name == "long_view"}
            row |= {"user_id": int(rng.integers(0, 25)), "video_id": int(rng.integers(0, 40)), "date": 20220411}
            row |= {"is_hate": int(rng.random() < 0.05), "time_ms": 1000 * (start + 60 * place) + place % 1000}
            part.append(row)
        text = "\n".join([KUAIRAND, *(",".join(str(row[name]) for name in names) for row in part)]) + "\n"
        (directory / f"log_standard_{dates}_pure.csv").write_text(text)
        rows += part
    (directory / "log_random_4_22_to_5_08_pure.csv").write_text(text.replace("20220411", "20220501"))
    (directory / "user_features_pure.csv").write_text("user_id,user_active_degree\n1,full_active\n")
    named = [{**r, "user": r["user_id"], "item": r["video_id"], "time": r["time_ms"]} for r in rows]
    meant = labelled(
        named,
        lambda r: not r["is_hate"] and bool(r["long_view"] or r["is_like"]),
        lambda r: bool(r["is_hate"] or not (r["is_click"] or r["long_view"] or r["is_like"])),
    )
    counts = checked(spark, tmp_path, "kuairand", meant)
    assert counts["read"]["rows"] == len(rows)


def test_mind(spark: SparkSession, tmp_path: Path) -> None:
    """Each article of an impression is a row: clicked is a like, shown and not clicked a dislike."""
    rng = np.random.default_rng(4)
    rows: list[Row] = []
    number = 0
    for part, start in (("MINDsmall_dev", 1_573_800_000), ("MINDsmall_train", 1_573_300_000)):
        lines = []
        for place in range(150):
            moment, user, number = start + 1_801 * place, f"U{rng.integers(1, 20)}", number + 1
            shown = rng.choice(60, int(rng.integers(2, 12)), replace=False)
            clicked = int(rng.integers(len(shown)))
            impressions = [(f"N{news}", int(n == clicked)) for n, news in enumerate(shown)]
            history = " ".join(f"N{n}" for n in rng.integers(0, 60, int(rng.integers(0, 4))))
            at = time.gmtime(moment)
            text = f"{at.tm_mon}/{at.tm_mday}/{at.tm_year} {(at.tm_hour + 11) % 12 + 1}:{at.tm_min:02}:{at.tm_sec:02} "
            text += "AM" if at.tm_hour < 12 else "PM"
            lines.append("\t".join([str(number), user, text, history, " ".join(f"{n}-{c}" for n, c in impressions)]))
            rows += [{"user": user, "item": n, "time": moment, "clicked": c} for n, c in impressions]
        directory = tmp_path / "raw" / part
        directory.mkdir(parents=True)
        (directory / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    news = [f'N{n}\tnews\tnewsus\tHe said "no {n}\t\thttps://x\t[]\t[]' for n in range(60)]
    (tmp_path / "raw" / "news.tsv").write_text("\n".join(news) + "\n")
    meant = labelled(rows, lambda r: bool(r["clicked"]), lambda r: not r["clicked"])
    counts = checked(spark, tmp_path, "mind", meant)
    assert counts["read"]["rows"] == len(rows)
    titles = pq.read_table(tmp_path / "out" / "titles.parquet")
    assert titles["title"][0].as_py().startswith('He said "no')


def test_mind_s_test_part_without_labels_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    lines = [f"{n}\tU{n}\t11/15/2019 8:55:22 AM\t\tN1 N2 N3" for n in range(50)]
    (tmp_path / "raw" / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception, match="an item of impressions without '-' and its relevance"):
        build(spark, tmp_path / "raw", tmp_path / "out", load_conf("dataset", "mind", DatasetSettings()))
