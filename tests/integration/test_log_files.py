"""Files of logs as people have them, their titles, and what the command says about them."""

import json
import re
import subprocess
import sys

import pytest
from helpers.commands import ENVIRONMENT, called
from helpers.logs import HEADER, ITEMS, ROWS, USERS, Log

from pnfrec_dist.data.schema import read_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.train import main as train
from spark_jobs.prepare import _input_error

pytestmark = pytest.mark.integration


def test_users_who_have_met_every_item_are_told(log: Log) -> None:
    """Any list then holds the target: popularity has NDCG 1 as well as every model."""
    met = [(f"u{n % 10}", f"i{n // 10 % 12}", 1 + n % 5, 1_600_000_000 + n) for n in range(600)]
    log.write(met)
    log.prepare()
    assert re.search(r"WARNING: \d+ of \d+ test users have seen all but 10 items or fewer", log.warned)


def test_likes_alone_need_no_relevance(log: Log) -> None:
    log.write([(u, i, t) for u, i, _, t in ROWS], header="user,item,timestamp")
    assert log.read(source={"relevance": "none"}, feedback={}).likes == 600
    assert "left out, because source.relevance is none" in log.refused(source={"relevance": "none"})


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030"])
def test_an_encoding_of_the_log(log: Log, encoding: str) -> None:
    name = "Caf\u00e9" if encoding != "gb18030" else "\u5496\u5561"
    text = "\n".join([HEADER, *(f"{u},{name} {i},{x},{t}" for u, i, x, t in ROWS)])
    (log.raw / "log.csv").write_bytes(text.encode(encoding))
    assert {row["raw_item_id"] for row in log.cleaned(source={"encoding": encoding})} == {f"{name} {i}" for i in ITEMS}
    assert log.cleaned(source={"encoding": "utf-8"}) == []
    assert "source.encoding is 'utf-9'" in log.refused(source={"encoding": "utf-9"})


def test_an_escape_before_quotes_inside_quotes(log: Log) -> None:
    rows = [(u, f'"the \\"{i}\\", live"', x, t) for u, i, x, t in ROWS]
    log.write(rows)
    found = log.cleaned(source={"escape": "\\"})
    assert [row["raw_item_id"] for row in found] == [f'the "{i}", live' for i in ITEMS]


def test_a_blank_last_line_is_no_row(log: Log) -> None:
    log.write(ROWS[:95], "a.csv")
    log.write(ROWS[95:190], "b.csv")
    with (log.raw / "a.csv").open("a") as file:
        file.write("\n\n \n")
    counts = log.read().counts
    assert counts["read"]["rows"] == 190 and counts["quarantined"]["rows"] == 0
    lines = (log.raw / "a.csv").read_text().splitlines()
    (log.raw / "a.csv").write_text("\n".join([*lines[:50], "", *lines[50:]]))
    assert "because an empty line" in log.refused("--force", clean={"max_quarantine_share": 0.001})


HINTS = {
    "one JSON array": ({"format": "json"}, "[\n" + ",\n".join(json.dumps({"user": u}) for u in USERS) + "\n]"),
    "JSON lines (source.format: json)": ({}, "\n".join(json.dumps({"user": u}) for u in USERS)),
    "delimited text (source.format: csv)": ({"format": "json"}, "\n".join(",".join(map(str, row)) for row in ROWS)),
    "fields separated by ';' (source.separator)": ({}, "\n".join(";".join(map(str, row)) for row in ROWS)),
    "fields separated by a tab (source.separator)": (
        {"header": False, "fields": ["user", "item", "rating", "timestamp"]},
        "\n".join("\t".join(map(str, row)) for row in ROWS),
    ),
    "a page of a web site or XML, not a log": ({}, "<html><body>moved</body></html>"),
}


@pytest.mark.parametrize("hint", HINTS)
def test_what_a_file_of_another_format_looks_like_is_said(log: Log, hint: str) -> None:
    source, text = HINTS[hint]
    (log.raw / "log.csv").write_text(text)
    said = log.refused(source=source)
    assert f"the file looks like {hint}" in said and "max-quarantine-share" not in said


@pytest.mark.slow
def test_the_shells_language_and_other_spark_do_not_matter(log: Log) -> None:
    """A file name with an accent in the C locale; variables of another Spark and another Python."""
    log.write(ROWS, "donn\u00e9es.csv")
    log.prepare()
    (log.directory / "data/prepared/mylogs").rename(log.directory / "before")
    other = {"LC_ALL": "C", "PYSPARK_PYTHON": "no-python", "SPARK_HOME": "/nowhere", "PYSPARK_SUBMIT_ARGS": "--nothing"}
    line = [sys.executable, "-m", "spark_jobs", "--dataset", "mylogs", "--raw", "raw"]
    done = subprocess.run(line, cwd=log.directory, env=ENVIRONMENT | other, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built = read_manifest(Location(log.directory / "data/prepared/mylogs"))
    assert built.digest == read_manifest(Location(log.directory / "before")).digest


def test_a_python_of_a_cluster_that_lacks_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/usr/bin/python3")
    trace = "org.apache.spark.api.python.PythonException: ...\nModuleNotFoundError: No module named 'pyarrow'\n at ..."
    said = str(_input_error(Exception(trace)))
    assert said.startswith(
        "Spark's workers run PYSPARK_PYTHON=/usr/bin/python3, which has no pyarrow; set PYSPARK_PYTHON"
    )


def test_the_next_command_trains_what_flags_prepared(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused only when the YAML changes after the preparation."""
    log.write(ROWS)
    log.prepare("--clean.duplicates", "keep_last")
    monkeypatch.chdir(log.directory)
    assert "next: python -m pnfrec_dist.train --dataset mylogs\n" in log.printed
    called(train, log.directory, "--dataset", "mylogs", "--dry-run")
    conf = log.directory / "conf/dataset/mylogs.yaml"
    text = conf.read_text()
    conf.write_text(text + "clean: {duplicates: keep_last}\n")
    called(train, log.directory, "--dataset", "mylogs", "--dry-run")
    conf.write_text(text + "clean: {duplicates: keep_first}\n")
    with pytest.raises(InputError, match=r"was prepared with other settings than conf/dataset/mylogs\.yaml"):
        called(train, log.directory, "--dataset", "mylogs", "--dry-run")


def test_the_file_of_titles_is_no_log_and_whole_numbers_with_zeros_find_their_items(log: Log) -> None:
    log.write([(u, i[1:], x, t) for u, i, x, t in ROWS])
    (log.raw / "items.csv").write_text("item_id,name\n3.0,Three\n4,Four\n")
    log.prepare(titles={"file": "items.csv", "item": "item_id", "title": "name"})
    assert log.titles() == {"3": "Three", "4": "Four"}
