import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from pnfrec_dist.config import SourceSettings
from pnfrec_dist.errors import InputError
from spark_jobs import session
from spark_jobs.sources import find_raw, obtain_raw, read_rows
from spark_jobs.synthetic import generate_ratings


@dataclass(frozen=True)
class Place:
    raw: str = ""
    source: SourceSettings = field(default_factory=SourceSettings)


CSV = SourceSettings(files="r.csv")


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
    assert obtain_raw("mine", Place(source=source)) == [Path("data/raw/mine/r.csv")]
    assert Path("data/raw/mine/r.csv").read_text() == "hello"
    assert [p.name for p in Path("data/raw/mine").iterdir()] == ["r.csv"]


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    source = replace(archive(tmp_path / "a.zip"), md5="0" * 32)
    with pytest.raises(InputError, match=r"expected 0{32}; download .* into data/raw/mine, or pass RAW="):
        obtain_raw("mine", Place(source=source))
    assert not Path("data/raw/mine").exists()


def test_without_a_network_it_says_what_to_download_and_where_to_put_it() -> None:
    source = replace(CSV, url="http://127.0.0.1:9/official.zip")
    with pytest.raises(InputError) as caught:
        obtain_raw("mine", Place(source=source))
    assert "download http://127.0.0.1:9/official.zip and unzip 'r.csv' into data/raw/mine" in str(caught.value)


def test_no_zip_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html>moved</html>")
    with pytest.raises(InputError, match="did not return a zip archive"):
        obtain_raw("mine", Place(source=replace(CSV, url=(tmp_path / "a.zip").as_uri())))


def test_missing_raw_data_names_path_and_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; RAW"):
        find_raw("mine", Place(raw="nowhere"))
    with pytest.raises(InputError, match=r"no file .r\.csv. in .*; pass RAW="):
        find_raw("mine", Place(raw=str(tmp_path), source=CSV))
    with pytest.raises(InputError, match="into data/raw/mine, or pass RAW="):
        obtain_raw("mine", Place(source=CSV))


def test_synthetic_ratings_are_seeded_and_shaped_as_promised() -> None:
    first, again, other = generate_ratings(0), generate_ratings(0), generate_ratings(1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    user, item, rating, time = first.T
    assert len(np.unique(user)) == 2000 and len(np.unique(item)) == 1000
    assert 90_000 <= len(first) <= 110_000
    assert set(rating) == {1, 2, 3, 4, 5}
    assert (time.max() - time.min()) / 86_400 > 150
    assert len(np.unique(first[:, :2], axis=0)) == len(first), "nobody rates an item twice"
    same_user = user[1:] == user[:-1]
    assert (np.diff(time)[same_user] >= 0).all()


def text_source(text: str, source: SourceSettings, spark: SparkSession) -> list[tuple]:
    Path("r.csv").write_text(text)
    rows = read_rows(spark, [Path("r.csv")], source).orderBy("source_file", "source_block", "source_row")
    return [tuple(row)[:5] for row in rows.collect()]


@pytest.mark.integration
def test_text_rows_stay_text_in_source_order_and_broken_ones_stay_whole(spark: SparkSession) -> None:
    rows = text_source('user,item,rating,timestamp\n"a,b",1,4.5,7\nshort,1\nx,1,2,3,4\n', CSV, spark)
    assert rows[0] == ("a,b", "1", "4.5", "7", None)
    assert rows[1][4] == "short,1"
    assert rows[2][4] == "x,1,2,3,4"


@pytest.mark.integration
def test_headerless_text_with_a_long_separator(spark: SparkSession) -> None:
    names = ("user", "item", "rating", "timestamp")
    source = replace(CSV, header=False, fields=names, separator="::", quote="")
    assert text_source('1::2::3::4\n"5::6::7::8\n', source, spark) == [
        ("1", "2", "3", "4", None),
        ('"5', "6", "7", "8", None),
    ]


@pytest.mark.integration
def test_a_missing_column_names_the_nearest(spark: SparkSession) -> None:
    Path("r.csv").write_text("user,item,rating,time\n")
    with pytest.raises(InputError, match=r"no column 'timestamp' \(source.timestamp\); did you mean 'time'"):
        read_rows(spark, [Path("r.csv")], CSV)


@pytest.mark.integration
def test_parquet_keeps_its_types_and_positions_follow_the_files(spark: SparkSession, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, user in (("b.parquet", 2), ("a.parquet", 1)):
        table = pa.table({"user": [user] * 3, "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0], "timestamp": [5, 5, 5]})
        pq.write_table(table, tmp_path / name)
    source = SourceSettings(format="parquet", files="*.parquet")
    files = find_raw("mine", Place(raw=str(tmp_path), source=source))
    rows = read_rows(spark, files, source).orderBy("source_file", "source_block", "source_row").collect()
    assert [(r["user"], r["item"], r["source_file"]) for r in rows] == [
        (1, 1, 0),
        (1, 2, 0),
        (1, 3, 0),
        (2, 1, 1),
        (2, 2, 1),
        (2, 3, 1),
    ]


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
    """The shim starts and swallows the one argument that the trimmed runtime refuses."""
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
    assert sorted(r["source_file"] for r in rows) == [0, 1]
    (tmp_path / "b é.csv").write_text("item,user,rating,timestamp\n" + row)
    with pytest.raises(InputError, match="give all files the same"):
        read_rows(spark, files, SourceSettings())
    (tmp_path / "_c.csv").write_text(header)
    with pytest.raises(InputError, match="Spark skips files whose name starts with '_'"):
        find_raw("mine", Place(raw=str(tmp_path)))
