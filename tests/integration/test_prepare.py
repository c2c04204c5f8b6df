"""The command `python -m spark_jobs`: in a session that the tests share, and as a separate process."""

import gzip
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import called, started
from helpers.earlier_version import to_version_3
from helpers.preparation import events, prepared_in, write_log
from pyspark.sql import SparkSession

from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.schema import read_manifest
from pnfrec_dist.errors import InputError
from spark_jobs import prepare
from spark_jobs.synthetic import generate

pytestmark = pytest.mark.integration

ML1M = Path(__file__).parents[3] / "shared" / "data" / "ml-1m"
CONF = """
source: {files: "*.csv"}
feedback: {threshold: 4}
filter: {min_users_per_item: 2, min_items_per_user: 2}
"""


def write_workspace(directory: Path, conf: str = CONF, lines: list[str] | None = None) -> Path:
    (directory / "conf/dataset").mkdir(parents=True)
    (directory / "conf/dataset/tiny.yaml").write_text(conf)
    rows = [f"u{u},{i},{r:.0f},{t}" for u, i, r, t in events(np.random.default_rng(5))]
    write_log(directory / "raw" / "log.csv", rows if lines is None else lines)
    return directory


@pytest.fixture(scope="module")
def workspace(new_workspace: Callable[[], Path]) -> Path:
    return new_workspace()


def test_prepared_data_set_is_whole_and_adds_up(workspace: Path) -> None:
    data = open_prepared(workspace / "data/prepared/tiny")
    counts = data.manifest.counts
    raw_rows = len(generate(3, users=300, items=120)[0])
    assert counts["read"]["rows"] == raw_rows
    assert counts["interactions"]["rows"] + counts["quarantined"]["rows"] + counts["deduplicated"]["rows"] == raw_rows
    users, holdout = data.train(), data.holdout("test")
    assert len(users) == counts["train_users"]["users"]
    assert (users.history.lengths >= 2).all()
    assert len(holdout) == counts["test"]["users"]
    assert holdout.target_is_positive.sum() == counts["test"]["positive_targets"]
    assert data.holdout("validation").target_is_positive.all()
    interactions, report = data.holdout_interactions("test"), (data.directory / "report.html").read_bytes().decode()
    assert interactions is not None
    assert counts["test"]["holdout_interactions"] == len(interactions.items.values) > len(holdout)
    assert f"{len(interactions.items.values):,}</td>" in report
    assert [p.name for p in (workspace / "data/prepared").iterdir()] == ["tiny"], "no building leftovers"


def test_preparing_again_is_a_no_op_and_other_settings_rebuild(spark: SparkSession, workspace: Path) -> None:
    before = read_manifest(workspace / "data/prepared/tiny")
    assert "up to date" in called(prepare.main, workspace, "--dataset", "tiny", "--raw", "raw")
    shutil.copytree(workspace / "data/prepared", workspace / "elsewhere")
    name = ["--dataset", "tiny", "--raw", "raw", "--data-dir", "elsewhere", "--partitions", "1"]
    assert "earlier version" not in called(prepare.main, workspace, *name)
    to_version_3(workspace / "elsewhere/tiny")
    assert "earlier version, without the data for an evaluation" in called(prepare.main, workspace, *name)
    assert "up to date" not in prepared_in(spark, workspace, *name, "--split.seed", "7")
    built = read_manifest(workspace / "elsewhere/tiny")
    assert built.settings["split"]["seed"] == 7
    content = [{e.path: e.sha256 for e in m.files if e.path.startswith(("train", "items"))} for m in (before, built)]
    assert content[0] == content[1], "one partition or two, another halving: train shards and items are the same bytes"


def test_a_build_that_misses_its_known_row_says_so_and_uris_are_as_good_as_paths(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_workspace(tmp_path, CONF + "expected: {rows: 1501, users: 60, negative_percent: 99}\n")
    places = ["--raw", (directory / "raw").as_uri(), "--data-dir", (directory / "sets").as_uri()]
    printed = prepared_in(spark, directory, "--dataset", "tiny", *places)
    warned = next(line for line in capsys.readouterr().err.splitlines() if "differs" in line)
    assert warned.startswith("WARNING: tiny differs from a build of the official file: rows: 1,500 instead of 1,501;")
    assert "negative percent" in warned and "users" not in warned
    assert re.search(r"rows +1,500 +1,501 +NO", printed) and re.search(r"users +60 +60 +yes", printed)
    for stage in ("read", "quarantined", "deduplicated", "interactions", "split", "filtered", "train", "holdout"):
        assert re.search(rf"^\[ +\d+ s\] {stage} ", printed, re.M), stage
    assert re.search(r"history length in train +min +10 % +median +90 % +max", printed)
    page = (directory / "sets/tiny/report.html").read_text()
    assert (
        page.count("<svg") == 4
        and "differs from a build of the official file" in page
        and "http://"
        not in re.sub(r'(xmlns(:\w+)?|rdf:\w+|href|content)="http://[^"]+"', "", page)
        .replace("http://www.w3.org", "")
        .replace("http://creativecommons.org", "")
        .replace("http://purl.org", "")
    )

    again = called(prepare.main, directory, "--dataset", "tiny", *places)
    assert "is up to date (same source, same settings)" in again
    assert "WARNING" in capsys.readouterr().err, "it stays wrong"
    whole = called(prepare.main, directory, "--verify", "sets/tiny")
    assert re.search(r"^sets/tiny is complete: \d+ files, .* 40 items$", whole, re.M)
    shard = next((directory / "sets/tiny/train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train/part-00000.parquet has "):
        called(prepare.main, directory, "--verify", "sets/tiny")


def test_too_many_unreadable_rows_are_named_and_leave_the_old_data_set(spark: SparkSession, tmp_path: Path) -> None:
    good = [f"u{u},{i},{r:.0f},{t}" for u, i, r, t in events(np.random.default_rng(5))]
    directory = write_workspace(tmp_path, lines=[*good[:100], *["u1,i1,five,1600000000"] * 30, "short", *good[100:]])
    with pytest.raises(InputError) as caught:
        prepared_in(spark, directory, "--dataset", "tiny", "--raw", "raw")
    said = str(caught.value)
    assert "31 of 1,531 rows (2.02%, allowed are 1.00%) could not be read: 30 because rating is not a number" in said
    assert "first in log.csv: 'u1,i1,five,1600000000' (rating is not a number)" in said
    assert "--clean.max-quarantine-share 0.1" in said
    assert list((directory / "data/prepared").iterdir()) == []


def test_a_truncated_gzip_file_is_one_line(tmp_path: Path) -> None:
    """In a separate process, because Java prints much about it."""
    directory = write_workspace(tmp_path, CONF.replace("*.csv", "*.csv.gz"))
    raw = directory / "raw" / "log.csv"
    header, _, rows = raw.read_bytes().partition(b"\n")
    raw.with_suffix(".csv.gz").write_bytes(gzip.compress(header + b"\n" + rows * 90)[:-2000])
    done = started(directory, "spark_jobs", "--dataset", "tiny", "--raw", "raw")
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: \S*log.csv.gz cannot be read to its end .*\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--source.time-format", "hours"], "source.time_format is 'hours'"),
        (["--source.time-format", "yyyy-MM-bb-dd"], "is not a pattern that Spark can read"),
        (["--feedback.threshold", "quantile"], "feedback.quantile is None; it must be in [0, 1]"),
        (["--feedback.threshold", "labels"], "feedback.positive_labels is empty; it must be at least one label"),
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
def test_wrong_input_is_said_in_one_line(spark: SparkSession, tmp_path: Path, args: list[str], said: str) -> None:
    directory = write_workspace(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        prepared_in(spark, directory, "--dataset", "tiny", "--raw", "raw", *args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "ml1n"], "did you mean 'ml1m'"),
        (["--dataset", "tiny", "--raw", "nowhere"], "raw directory 'nowhere' does not exist"),
        (["--dataset", "tiny", "--split.quantil", "0.8"], "--split.quantile"),
    ],
)
def test_wrong_preparation_input_is_said(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(workspace)
    with pytest.raises(InputError, match=re.escape(said)):
        prepare.main(args)


@pytest.mark.skipif(not ML1M.is_dir(), reason=f"MovieLens-1M is not at {ML1M}; its licence forbids shipping it")
def test_ml1m_facts(spark: SparkSession, tmp_path: Path) -> None:
    """The counts of the authors' own split."""
    prepared_in(spark, tmp_path, "--dataset", "ml1m", "--raw", str(ML1M))
    manifest = read_manifest(tmp_path / "data/prepared/ml1m")
    counts = manifest.counts
    assert manifest.split_timestamp == 978132488
    assert counts["read"] == {"rows": 1_000_209}
    filtered = counts["filtered"]
    assert (filtered["rows"], filtered["users"], filtered["items"]) == (999_611, 6_040, 3_416)
    assert round(1 - filtered["positives"] / filtered["rows"], 2) == 0.42
    assert counts["train"] == {"rows": 899_648, "users": 6_011, "items": 3_412}
    assert (counts["holdout"]["rows"], counts["holdout"]["users"]) == (95_698, 1_179)
    assert counts["assigned"] == {"test_users": 590, "validation_users": 589}
    assert counts["train_users"] == {"users": 5_999}
    assert counts["validation"].items() >= {"users": 312, "positive_targets": 312, "negative_targets": 0}.items()
    assert counts["test"].items() >= {"users": 554, "positive_targets": 310, "negative_targets": 244}.items()
    data = open_prepared(tmp_path / "data/prepared/ml1m")
    assert data.num_items == 3_412
    assert np.unique(data.holdout("test").target_is_positive, return_counts=True)[1].tolist() == [244, 310]
