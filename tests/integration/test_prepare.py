"""The whole preparation, in one Spark session and through the command."""

import dataclasses
import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from pnfrec_dist.cli import load_conf
from pnfrec_dist.config import (
    CleanSettings,
    DatasetSettings,
    FeedbackSettings,
    FilterSettings,
    SourceSettings,
    SplitSettings,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.schema import Manifest
from pnfrec_dist.storage import Location
from spark_jobs import prepare
from spark_jobs.build import Build
from spark_jobs.sources import describe_sources, find_raw
from spark_jobs.verify import verify

pytestmark = pytest.mark.integration

START = 1_600_000_000
HEADER = "user,item,rating,timestamp"
SMALL = DatasetSettings(
    filter=FilterSettings(2, 2), feedback=FeedbackSettings(threshold=4), split=SplitSettings(min_positives=1)
)


@dataclasses.dataclass(frozen=True)
class Place:
    raw: str
    source: SourceSettings


def build(
    spark: SparkSession,
    raw: Path,
    out: Path,
    wanted: DatasetSettings = SMALL,
    *,
    partitions: int = 2,
    reverse: bool = False,
) -> Manifest:
    """One build in this session, checked as a whole; the files may be given in another order."""
    files = find_raw("tiny", Place(str(raw), wanted.source))
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    out.mkdir(parents=True)
    given = files[::-1] if reverse else files
    Build(spark, wanted, "tiny", given, partitions, time.monotonic()).run(Location(out), describe_sources(files))
    return verify(Location(out))


def random_log(rng: np.random.Generator, users: int = 50, items: int = 40, rows: int = 1000) -> list[str]:
    """Lines with many ties in time, and a quarter of the rows at one moment, which is T."""
    times = np.where(rng.random(rows) < 0.25, 90, rng.integers(0, 90, rows) + 12 * (rng.random(rows) < 0.08))
    columns = (rng.integers(0, users, rows), rng.integers(0, items, rows), rng.integers(1, 6, rows), START + times)
    return [f"u{u},{i},{r},{t}" for u, i, r, t in zip(*columns, strict=True)]


def write_log(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")


def train_bytes(manifest: Manifest) -> dict[str, str]:
    return {e.path: e.sha256 for e in manifest.files if e.path.startswith(("train/", "items."))}


def test_one_hash_whatever_the_order_of_files_blocks_and_partitions(spark: SparkSession, tmp_path: Path) -> None:
    """5 orders x 1 and 4 partitions; ties in time everywhere, so that only the place in the source decides.

    The last order runs with adaptive execution, as large inputs do.
    """
    rng = np.random.default_rng(0)
    lines = [*random_log(rng, rows=900), "broken", "u1,2,x,1600000000", ""]
    parts = {f"part-{n}.csv": lines[n * 180 : (n + 1) * 180 + 20] for n in range(5)}
    digests, sources, quarantined = set(), set(), set()
    for order in range(5):
        raw = tmp_path / f"raw-{order}"
        for name in rng.permutation(list(parts)):
            write_log(raw / str(name), parts[name])
        for partitions in (1, 4):
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


LOG_CASES = st.fixed_dictionaries(
    {
        "log": st.integers(0, 2),
        "seed": st.integers(0, 2**32 - 1),
        "removed": st.floats(0, 0.5),
        "changed": st.floats(0, 0.5),
        "added": st.lists(
            st.tuples(st.integers(0, 59), st.integers(0, 49), st.integers(1, 5), st.integers(90, 130)), max_size=12
        ),
        "duplicates": st.sampled_from(["keep_all", "keep_first", "keep_last"]),
        "threshold": st.sampled_from([4.0, "median", "quantile"]),
        "iterate": st.booleans(),
    }
)


class LeakCheck:
    """Rows at or after T are added, changed and removed, and T stays: train shards and items are the same bytes."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark, self.root = spark, root
        self.untouched: dict[tuple, Manifest] = {}
        self.held = 0

    def run(self, examples: int) -> None:
        healthy = [HealthCheck.too_slow, HealthCheck.filter_too_much]
        options = settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=healthy
        )
        options(given(LOG_CASES)(self.check))()

    def check(self, case: dict) -> None:
        lines = random_log(np.random.default_rng(case["log"]))
        wanted = dataclasses.replace(
            SMALL,
            clean=CleanSettings(duplicates=case["duplicates"]),
            feedback=FeedbackSettings(case["threshold"], quantile=0.6 if case["threshold"] == "quantile" else None),
            filter=FilterSettings(2, 2, iterate=case["iterate"]),
        )
        key = (case["log"], case["duplicates"], case["threshold"], case["iterate"])
        try:
            if key not in self.untouched:
                self.untouched[key] = self.build(lines, wanted)
            before = self.untouched[key]
            after = self.build(self.altered(lines, case), wanted)
        except InputError as error:
            assume("is empty" not in str(error))  # nothing is left to evaluate: no data set, no leak
            raise
        assume(before.split_timestamp == after.split_timestamp)
        assert train_bytes(before) == train_bytes(after)
        assert before.threshold == after.threshold
        self.held += 1

    def altered(self, lines: list[str], case: dict) -> list[str]:
        rng = np.random.default_rng(case["seed"])
        altered = []
        for line in lines:
            user, item, _, moment = line.split(",")
            if int(moment) >= START + 90:
                if rng.random() < case["removed"]:
                    continue
                if rng.random() < case["changed"]:
                    line = f"{user},{item},{rng.integers(1, 6)},{moment}"
            altered.append(line)
        for user, item, rating, offset in case["added"]:
            place = int(rng.integers(0, len(altered) + 1))
            altered.insert(place, f"u{user},{item},{rating},{START + offset}")
        return altered

    def build(self, lines: list[str], wanted: DatasetSettings) -> Manifest:
        root = self.root / str(len(list(self.root.iterdir())))
        write_log(root / "raw" / "log.csv", lines)
        return build(self.spark, root / "raw", root / "out", wanted, partitions=1)


def test_a_log_of_one_moment_has_nothing_before_the_split_and_says_so(spark: SparkSession, tmp_path: Path) -> None:
    write_log(tmp_path / "raw" / "log.csv", [f"u{n % 9},{n % 7},4,{START}" for n in range(63)])
    with pytest.raises(InputError, match=rf"train is empty; T = {START} leaves nothing there; change --split.quantile"):
        build(spark, tmp_path / "raw", tmp_path / "out")


def test_nothing_after_the_split_reaches_train(spark: SparkSession, tmp_path: Path) -> None:
    check = LeakCheck(spark, tmp_path)
    check.run(2)
    assert check.held >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_after_the_split_reaches_train_in_200_cases(spark: SparkSession, tmp_path: Path) -> None:
    check = LeakCheck(spark, tmp_path)
    check.run(200)
    assert check.held >= 200


# ---- the lists, against the protocol written again in plain Python ------------------------------------------


Event = tuple[str, int, bool, int, int]
"""User, item, is positive, time, place in the source."""


def slow_events(lines: list[str], rule: str) -> tuple[list[Event], int]:
    """(what is left of the lines after duplicates, support before T and the items of train, in order; T)."""
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


# ---- each data set's file, in its real shape ---------------------------------------------------------------


def events(rng: np.random.Generator) -> list[tuple[int, int, float, int]]:
    """(user, item, rating 1..5, epoch seconds), nobody rates an item twice; a day holds many of a user's rows."""
    pairs = [(int(u), int(i)) for u in range(60) for i in rng.choice(40, 25, replace=False)]
    times = START + 86_400 * rng.integers(0, 60, len(pairs)) + rng.integers(0, 3, len(pairs))
    return [(u, i, float(r), int(t)) for (u, i), r, t in zip(pairs, rng.integers(1, 6, len(pairs)), times, strict=True)]


def write_source(name: str, directory: Path, rows: list[tuple]) -> None:
    """The events as the named data set writes its file."""
    directory.mkdir(parents=True)
    days = [time.strftime("%Y-%m-%d", time.gmtime(t)) for *_, t in rows]
    ids = [(f"A{u:09d}XY", f"B{i:08d}") for u, i, *_ in rows]
    if name == "ml1m":
        lines = [f"{u}::{i}::{r:.0f}::{t}" for u, i, r, t in rows]
        file = "ratings.dat"
    elif name == "ml100k":
        lines = [f"{u}\t{i}\t{r:.0f}\t{t}" for u, i, r, t in rows]
        file = "u.data"
    elif name == "ml20m":
        lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r - 0.5},{t}" for u, i, r, t in rows)]
        file = "ratings.csv"
    elif name == "toys_ratings":
        lines = [f"{u},{i},{r},{t}" for (u, i), (*_, r, t) in zip(ids, rows, strict=True)]
        file = "ratings_Toys_and_Games.csv"
    elif name == "toys":
        keys = ("reviewerID", "asin", "helpful", "reviewText", "overall", "unixReviewTime", "reviewTime")
        lines = [
            json.dumps(dict(zip(keys, (u, i, [0, 0], 'said "no", é', r, t, "01 1, 2013"), strict=True)))
            for (u, i), (*_, r, t) in zip(ids, rows, strict=True)
        ]
        (directory / "reviews_Toys_and_Games_5.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        return
    else:
        assert name == "kion"
        head = "user_id,item_id,last_watch_dt,total_dur,watched_pct"
        lines = [
            head,
            *(f"{u},{i},{d},{100 * r:.0f},{20 * r - 20}" for (u, i, r, _), d in zip(rows, days, strict=True)),
        ]
        file = "interactions.csv"
    (directory / file).write_text("\n".join(lines) + "\n")


def slow_train_sequences(
    rows: list[tuple], threshold: float, scope_all_split: float
) -> dict[str, list[tuple[str, bool]]]:
    """user -> [(item, is positive)] of train in order of (time, place), by sorting in plain Python. No filter."""
    ordered = sorted(enumerate(rows), key=lambda pair: (pair[1][3], pair[0]))
    sequences: dict[str, list[tuple[str, bool]]] = {}
    for _, (user, item, relevance, moment) in ordered:
        if moment < scope_all_split:
            sequences.setdefault(user, []).append((item, relevance >= threshold))
    return {user: events for user, events in sequences.items() if sum(positive for _, positive in events) >= 2}


@pytest.mark.parametrize("name", ["ml1m", "ml100k", "ml20m", "toys", "toys_ratings", "kion"])
def test_each_source_in_its_real_shape(spark: SparkSession, tmp_path: Path, name: str) -> None:
    rows = events(np.random.default_rng(5))
    write_source(name, tmp_path / "raw", rows)
    wanted = load_conf("dataset", name, DatasetSettings())
    assert wanted.filter.scope == "all" and wanted.split.assignment == "permutation", "as the paper"
    manifest = build(spark, tmp_path / "raw", tmp_path / "out", wanted)
    assert manifest.counts["read"]["rows"] == manifest.counts["interactions"]["rows"] == len(rows)
    relevance = {"kion": lambda r: 20 * r - 20, "ml20m": lambda r: r - 0.5}
    user_id, item_id = (lambda u: str(u)), (lambda i: str(i))
    if name.startswith("toys"):
        user_id, item_id = (lambda u: f"A{u:09d}XY"), (lambda i: f"B{i:08d}")
    canonical = [
        (
            user_id(u),
            item_id(i),
            relevance.get(name, lambda r: r)(r),
            t // 86_400 * 86_400 if name == "kion" else t,
        )
        for u, i, r, t in rows
    ]
    times = [t for *_, t in canonical]
    assert manifest.split_timestamp == np.quantile(times, 0.9, method="nearest")
    expected = slow_train_sequences(canonical, float(wanted.feedback.threshold), manifest.split_timestamp)
    raw_ids = pq.read_table(tmp_path / "out" / "items.parquet")["raw_item_id"].to_pylist()
    found = {
        row["user_id"]: [(raw_ids[i - 1], p) for i, p in zip(row["items"], row["is_positive"], strict=True)]
        for row in pq.read_table(tmp_path / "out" / "train").to_pylist()
    }
    assert found == expected


def test_the_larger_movielens_are_read_as_ml20m_is() -> None:
    def layout(name: str) -> dict:
        return load_conf("dataset", name, DatasetSettings()).prepared()

    assert layout("ml25m") == layout("ml32m") == layout("ml20m")


def test_every_data_set_of_the_paper_states_its_row() -> None:
    known = {"ml1m": (6040, 3412, 999_611, 42), "ml20m": (138_493, 18_345, 19_984_024, 50)}
    known |= {"toys": (19_412, 11_924, 167_597, 38), "kion": (302_256, 10_348, 4_279_866, 40)}
    for name, row in known.items():
        expected = load_conf("dataset", name, DatasetSettings()).expected
        assert (expected.users, expected.items, expected.actions, expected.negative_percent) == row


# ---- the command ------------------------------------------------------------------------------------------


def command(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "spark_jobs", *args]
    return subprocess.run(line, cwd=directory, capture_output=True, text=True, timeout=250, check=False)


CONF = """
source: {files: "*.csv"}
feedback: {threshold: 4}
filter: {min_users_per_item: 2, min_items_per_user: 2}
"""


def workspace(directory: Path, conf: str = CONF, lines: list[str] | None = None) -> Path:
    (directory / "conf/dataset").mkdir(parents=True)
    (directory / "conf/dataset/tiny.yaml").write_text(conf)
    rows = [f"u{u},{i},{r:.0f},{t}" for u, i, r, t in events(np.random.default_rng(5))]
    write_log(directory / "raw" / "log.csv", rows if lines is None else lines)
    return directory


def test_a_build_that_misses_its_known_row_says_so_and_uris_are_as_good_as_paths(tmp_path: Path) -> None:
    directory = workspace(tmp_path, CONF + "expected: {rows: 1501, users: 60, negative_percent: 99}\n")
    places = ["--raw", (directory / "raw").as_uri(), "--data-dir", (directory / "sets").as_uri()]
    done = command(directory, "--dataset", "tiny", *places)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("\nWARNING: tiny is not what the official file gives: rows: 1,500, known 1,501;")
    assert "negative percent" in done.stderr and "users" not in done.stderr
    assert re.search(r"rows +1,500 +1,501 +NO", done.stdout) and re.search(r"users +60 +60 +yes", done.stdout)
    for stage in ("read", "quarantined", "deduplicated", "interactions", "split", "filtered", "train", "holdout"):
        assert re.search(rf"^\[ +\d+ s\] {stage} ", done.stdout, re.M), stage
    assert re.search(r"train history +min +10 % +median +90 % +max", done.stdout)
    page = (directory / "sets/tiny/report.html").read_text()
    assert (
        page.count("<svg") == 4
        and "is not what the official file gives" in page
        and "http://"
        not in re.sub(r'(xmlns(:\w+)?|rdf:\w+|href|content)="http://[^"]+"', "", page)
        .replace("http://www.w3.org", "")
        .replace("http://creativecommons.org", "")
        .replace("http://purl.org", "")
    )

    again = command(directory, "--dataset", "tiny", *places)
    assert again.returncode == 0 and "is up to date (same source, same settings)" in again.stdout
    assert "WARNING" in again.stderr, "it stays wrong"
    whole = command(directory, "--verify", "sets/tiny")
    assert whole.returncode == 0 and re.search(r"^sets/tiny is whole: \d+ files, .* 40 items$", whole.stdout, re.M)
    shard = next((directory / "sets/tiny/train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = command(directory, "--verify", "sets/tiny")
    assert broken.returncode == 2 and re.fullmatch(r"error: .*train/part-00000.parquet has .*\n", broken.stderr)


def test_too_many_unreadable_rows_are_named_and_leave_the_old_data_set(tmp_path: Path) -> None:
    good = [f"u{u},{i},{r:.0f},{t}" for u, i, r, t in events(np.random.default_rng(5))]
    directory = workspace(tmp_path, lines=[*good[:100], *["u1,i1,five,1600000000"] * 30, "short", *good[100:]])
    done = command(directory, "--dataset", "tiny", "--raw", "raw")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "31 of 1,531 rows (2.02%, allowed are 1.00%) could not be read: 30 because rating is not a number"
        in done.stderr
    )
    assert "first in log.csv: 'u1,i1,five,1600000000' (rating is not a number)" in done.stderr
    assert "--clean.max-quarantine-share 0.1" in done.stderr
    assert list((directory / "data/prepared").iterdir()) == []


def test_a_truncated_gzip_file_is_one_line(tmp_path: Path) -> None:
    directory = workspace(tmp_path, CONF.replace("*.csv", "*.csv.gz"))
    raw = directory / "raw" / "log.csv"
    header, _, rows = raw.read_bytes().partition(b"\n")
    raw.with_suffix(".csv.gz").write_bytes(gzip.compress(header + b"\n" + rows * 90)[:-2000])
    done = command(directory, "--dataset", "tiny", "--raw", "raw")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: \S*log.csv.gz cannot be read to its end .*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--source.time-format", "hours"], "source.time_format is 'hours'"),
        (["--source.time-format", "yyyy-bb-dd"], "is no pattern that Spark reads"),
        (["--feedback.threshold", "quantile"], "feedback.quantile is None; it must be in [0, 1]"),
        (["--feedback.threshold", "labels"], "feedback.positive_labels is (); it must be at least one label"),
        (["--clean.earliest", "1990"], "clean.earliest is '1990'"),
        (["--partitions", "-1"], "--partitions is -1"),
        (["--verify", "nowhere"], "no prepared data set at nowhere"),
        (["--verify", ""], "--verify is ''; it must be the directory of a prepared data set"),
        (["--feedback.threshold", "good"], "--feedback.threshold is 'good'; it must be a number or one of median"),
        (["--max-history", "all"], "--max-history is 'all'; it must be a whole number"),
        (["--split.quantile", "all"], "--split.quantile is 'all'; it must be a number"),
        (["--raw", "s4://bucket/logs"], "cannot open s4://bucket/logs"),
    ],
)
def test_wrong_input_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    directory = workspace(tmp_path)
    monkeypatch.chdir(directory)
    if "bb" in args[-1]:
        done = command(directory, "--dataset", "tiny", "--raw", "raw", *args)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
        return
    with pytest.raises(InputError, match=re.escape(said)):
        prepare.main(["--dataset", "tiny", "--raw", "raw", *args])
