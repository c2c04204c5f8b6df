"""The command `python -m spark_jobs`, as a user runs it."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.preparation import events, write_log

from pnfrec_dist.errors import InputError
from spark_jobs import prepare

pytestmark = pytest.mark.integration


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
