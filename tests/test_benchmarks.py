"""The benchmarks start without the tests' helpers, and the stored page is the one that they write."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.core import PARTS
from benchmarks.core_page import page
from benchmarks.prep_yambda import CONF
from benchmarks.recommend import whole_command
from benchmarks.watched import size_of, watched
from benchmarks.yambda_like import FILE, SCHEMA, make_tracks, write_yambda_like
from pnfrec_dist.config.conf_files import load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(f"benchmarks.{file.stem}" for file in (ROOT / "benchmarks").glob("[a-z]*.py"))


def test_every_benchmark_can_be_imported() -> None:
    """In a process without pytest's import paths."""
    code = f"import {', '.join(MODULES)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which make bench measures")
def test_the_steps_of_a_gpu_are_measured_the_same_way_on_a_cpu() -> None:
    request = json.dumps({"case": "step", "items": 60, "width": 8, "batch_size": 12, "steps": 5})
    line = [sys.executable, "-m", "benchmarks.gpu", request]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found["users_per_s"] * found["seconds"] == pytest.approx(12)
    assert 0 <= found["waiting"] < 1 and found["flops"] > 0 and found["mib_planned"] > 0


def test_the_page_is_that_of_the_stored_results() -> None:
    docs = ROOT / "docs"
    notes = (docs / "benchmarks-notes.md").read_text(encoding="utf-8")
    results = json.loads((docs / "benchmarks.json").read_text(encoding="utf-8"))
    assert (docs / "benchmarks.md").read_text(encoding="utf-8") == f"{page(results, PARTS)}\n{notes}"


ROWS, USERS, TRACKS = 20_000, 200, 400


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yambda") / "log.parquet"
    write_yambda_like(path, ROWS, USERS, TRACKS, seed=1)
    return path


@pytest.fixture(scope="module")
def rows(log: Path) -> list[dict]:
    return pq.read_table(log).to_pylist()


def test_the_log_has_the_schema_of_yambda(log: Path) -> None:
    """Also in Parquet: every column is optional, events are strings, and LZ4 compresses."""
    events = pa.dictionary(pa.uint32(), pa.string())
    file = pq.ParquetFile(log)
    assert [(field.name, field.type) for field in file.schema_arrow] == [
        ("uid", pa.uint32()),
        ("timestamp", pa.uint32()),
        ("item_id", pa.uint32()),
        ("is_organic", pa.uint8()),
        ("played_ratio_pct", pa.uint16()),
        ("track_length_seconds", pa.uint32()),
        ("event_type", events),
    ]
    names = {b"_PL_ENUM_VALUES": b"6;listen7;dislike4;like9;undislike6;unlike"}
    assert file.schema_arrow.field("event_type").metadata == names
    columns = [file.schema.column(place) for place in range(7)]
    assert {column.max_definition_level for column in columns} == {1}
    assert [column.physical_type for column in columns] == ["INT32"] * 6 + ["BYTE_ARRAY"]
    assert file.metadata.row_group(0).column(0).compression == "LZ4"
    assert file.read(["event_type"])["event_type"].type == events


def test_the_log_has_the_asked_size_and_yambdas_order(rows: list[dict]) -> None:
    """Rows of a user with the same time stand in the order of the official file."""
    order = ["listen", "dislike", "like", "undislike", "unlike"]
    keys = [(row["uid"], row["timestamp"], order.index(row["event_type"])) for row in rows]
    assert len(rows) == ROWS and keys == sorted(keys)
    assert {row["uid"] for row in rows} == set(range(100, 100 * USERS + 1, 100))
    items = {row["item_id"] for row in rows}
    assert 0.95 * TRACKS < len(items) <= TRACKS and min(items) >= 1 and 9 * TRACKS < max(items) <= 10 * TRACKS
    times = [row["timestamp"] for row in rows]
    assert all(time % 5 == 0 for time in times) and min(times) < 1e6 and 25e6 < max(times) <= 26e6
    ties = np.mean([a[:2] == b[:2] for a, b in pairwise(keys)])
    assert 0.08 < ties < 0.16


def test_shares_of_events_and_played_percents_are_those_of_yambda(rows: list[dict]) -> None:
    shares = {event: count / ROWS for event, count in Counter(row["event_type"] for row in rows).items()}
    published = {"listen": 0.972, "like": 0.0185, "dislike": 0.0023, "unlike": 0.0066, "undislike": 0.0004}
    assert shares == pytest.approx(published, rel=0.25, abs=0.0003)
    percent = np.array([row["played_ratio_pct"] for row in rows if row["event_type"] == "listen"])
    measured = [np.mean(percent == 0), np.mean(percent < 50), np.mean(percent > 100), np.median(percent)]
    assert measured == pytest.approx([0.0745, 0.366, 0.0047, 100], rel=0.15)
    assert percent.max() <= 159
    seconds = [row["track_length_seconds"] for row in rows if row["event_type"] == "listen"]
    assert min(seconds) >= 5 and np.median(seconds) == pytest.approx(200, rel=0.1) and not any(np.mod(seconds, 5))


def test_nulls_stand_where_nothing_was_played(rows: list[dict]) -> None:
    for row in rows:
        nulls = [name for name, value in row.items() if value is None]
        expected = [] if row["event_type"] == "listen" else ["played_ratio_pct", "track_length_seconds"]
        assert nulls == expected


def test_only_what_was_done_is_undone(rows: list[dict]) -> None:
    done, undoings = set(), 0
    for row in rows:
        pair, event = (row["uid"], row["item_id"]), row["event_type"]
        if event.startswith("un"):
            assert (*pair, event.removeprefix("un")) in done
            done.remove((*pair, event.removeprefix("un")))
            undoings += 1
        elif event != "listen":
            assert (*pair, event) not in done
            done.add((*pair, event))
    assert undoings > 50


def test_activity_and_popularity_have_heavy_tails_and_tracks_repeat(rows: list[dict]) -> None:
    for column, share in (("uid", 0.45), ("item_id", 0.45)):
        counts = sorted(Counter(row[column] for row in rows).values())
        assert sum(counts[-len(counts) // 10 :]) > share * ROWS
    pairs = Counter((row["uid"], row["item_id"]) for row in rows)
    assert len(pairs) < 0.6 * ROWS and max(pairs.values()) > 20


def test_likes_and_dislikes_follow_the_taste_of_a_user(rows: list[dict]) -> None:
    """The two groups that a user hears most hold most of his likes and few of his dislikes."""
    tracks = make_tracks(TRACKS, np.random.default_rng(1))
    group = dict(zip(tracks.ids_T.tolist(), tracks.group_T.tolist(), strict=True))
    heard: dict[int, Counter[int]] = {row["uid"]: Counter() for row in rows}
    for row in rows:
        heard[row["uid"]][group[row["item_id"]]] += row["event_type"] == "listen"
    own = {(uid, number) for uid, groups in heard.items() for number, _ in groups.most_common(2)}
    share = {
        event: np.mean([(r["uid"], group[r["item_id"]]) in own for r in rows if r["event_type"] == event])
        for event in ("listen", "like", "dislike")
    }
    assert share["dislike"] + 0.15 < share["listen"] < share["like"] - 0.1


def test_equal_seeds_make_equal_files(log: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "new/same.parquet", tmp_path / "other.parquet"
    write_yambda_like(same, ROWS, USERS, TRACKS, seed=1)
    write_yambda_like(other, ROWS, USERS, TRACKS, seed=2)
    assert same.read_bytes() == log.read_bytes() != other.read_bytes()


def test_a_log_of_several_chunks_holds_every_user_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks hold whole users, also a user with more rows than a chunk."""
    monkeypatch.setattr("benchmarks.yambda_like.CHUNK", 100)
    write_yambda_like(tmp_path / "log.parquet", ROWS, USERS, TRACKS)
    table = pq.read_table(tmp_path / "log.parquet")
    uid, time = (table[name].to_numpy().astype(np.int64) for name in ("uid", "timestamp"))
    assert len(uid) == ROWS and len(np.unique(uid)) == USERS and max(np.bincount(uid)) > 200
    assert np.all(np.diff(uid << 32 | time) >= 0)
    assert pq.ParquetFile(tmp_path / "log.parquet").num_row_groups > 50


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for sizes in ((10, 11, 5), (10, 0, 5), (10, 5, 0)):
        with pytest.raises(ValueError, match=r"10 rows, .* users must be 1 to the rows"):
            write_yambda_like(tmp_path / "log.parquet", *sizes)
    assert not list(tmp_path.iterdir())


def test_a_watched_program_is_measured(tmp_path: Path) -> None:
    """Peaks count: the file is gone at the end, and the memory is that of a child process."""
    code = (
        "import pathlib, subprocess, sys, time; place = pathlib.Path('scratch/deep'); place.mkdir(parents=True);"
        "file = place / 'file'; file.write_bytes(bytes(5_000_000));"
        "subprocess.run([sys.executable, '-c', 'import time; a = b\"1\" * 200_000_000; time.sleep(1)']); file.unlink()"
    )
    scratch = tmp_path / "scratch"
    usage = watched([sys.executable, "-c", code], tmp_path, tmp_path / "log", directories=[scratch, tmp_path / "none"])
    assert 1 < usage.seconds < 30 and usage.disk == pytest.approx(0.005) and 0.2 < usage.memory < 0.4
    assert size_of(scratch) == 0
    with pytest.raises(SystemExit, match=r"(?s)failed:.*the value is 7"):
        line = [sys.executable, "-c", "import os, sys; sys.exit('the value is ' + os.environ['VALUE'])"]
        watched(line, tmp_path, tmp_path / "log", variables={"VALUE": "7"})


def test_the_settings_for_logs_like_yambdas_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/bench.yaml").write_text(CONF)
    source = load_conf("dataset", "bench", DatasetSettings()).source
    assert source.files == FILE and {source.user, source.item, source.timestamp} <= set(SCHEMA.names)


@pytest.mark.slow
def test_the_whole_command_that_makes_lists_is_timed() -> None:
    """For one user more than a part."""
    said = whole_command(2_001, 700, 8)
    assert re.fullmatch(r"2,001 users, 700 items, d = 8: [\d,]+ users/s; \d+\.\d s from start to end", said)
