"""Every row is kept, quarantined with its reason, or counted as a duplicate."""

import datetime
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.preparation import Place, cleaned
from pyspark.sql import SparkSession

from pnfrec_dist.config.dataset_settings import CleanSettings, DatasetSettings, FeedbackSettings
from pnfrec_dist.config.source_settings import SourceSettings
from spark_jobs.clean import rejected, unreadable
from spark_jobs.raw_files import RawFile, find_raw
from spark_jobs.repeats import accepted
from spark_jobs.sources import read_rows
from spark_jobs.text_rows import HEADER_AGAIN
from spark_jobs.times import epoch_ticks, timestamp_unit

pytestmark = pytest.mark.integration

HEADER = "user,item,rating,timestamp"
FAULTS = {
    # name: (line, reason)
    "short": ("u1,i1,3", "not 4 fields"),
    "long": ("u1,i1,3,1600000000,9", "not 4 fields"),
    "empty": ("", "an empty line"),
    "no user": (" ,i1,3,1600000000", "user is empty"),
    "no item": ("u1,,3,1600000000", "item is empty"),
    "no rating": ("u1,i1,,1600000000", "rating is empty"),
    "no number": ("u1,i1,good,1600000000", "rating is not a number"),
    "java number": ("u1,i1,5f,1600000000", "rating is not a number"),
    "nan": ("u1,i1,NaN,1600000000", "rating is not finite"),
    "infinite": ("u1,i1,-Infinity,1600000000", "rating is not finite"),
    "no time": ("u1,i1,3,yesterday", "timestamp is not a number (s since 1970)"),
    "empty time": ("u1,i1,3,", "timestamp is empty"),
    "milliseconds": ("u1,i1,3,1600000000000", "timestamp is not before 2100-01-01"),
    "too early": ("u1,i1,3,0", "timestamp is before 1990-01-01"),
    "bad bytes": ("u1,\udcff\udcfe,3,1600000000", "not valid UTF-8"),
    "header": (HEADER, HEADER_AGAIN),
    "open quote": ('u1,"i1,3,1600000000', "a quote that does not close"),
    "open at the end": ('u1,i1,3,"1600000000', "a quote that does not close"),
    "hexadecimal": ("u1,i1,0x1p1,1600000000", "rating is not a number"),
}
TIMES_EACH = 7


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def raw_files(source: SourceSettings) -> list[RawFile]:
    return find_raw("mine", Place(".", source))


def test_each_kind_of_fault_among_ten_thousand_rows_is_counted_exactly(spark: SparkSession) -> None:
    """19 kinds of fault and exact duplicates over two files."""
    good = [f"u{n % 97},i{n % 89},{n % 10 / 2},{1_600_000_000 + n}" for n in range(9_767)]
    faults = [line for line, _ in FAULTS.values() for _ in range(TIMES_EACH)]
    rows = [*good, *faults, *good[:100]]
    assert len(rows) == 10_000
    spread = [rows[(n * 7919) % len(rows)] for n in range(len(rows))]
    for name, part in (("a.csv", spread[:3000]), ("b.csv", spread[3000:])):
        Path(name).write_bytes("\n".join([HEADER, *part, ""]).encode(errors="surrogateescape"))
    settings = DatasetSettings()
    files = raw_files(settings.source)
    typed = cleaned(read_rows(spark, files, settings.source), settings)
    quarantine = rejected(unreadable(typed), files).collect()
    expected: dict[str, int] = {}
    for _, reason in FAULTS.values():
        expected[reason] = expected.get(reason, 0) + TIMES_EACH
    counted: dict[str, int] = {}
    for row in quarantine:
        counted[row["reason"]] = counted.get(row["reason"], 0) + 1
    assert counted == expected, "the first line of each file is its header, the others are not"
    kept = accepted(typed, 3).count()
    duplicates = typed.where("reason is null").count() - kept
    assert (kept, duplicates, len(quarantine)) == (9_767, 100, len(FAULTS) * TIMES_EACH)
    assert kept + duplicates + len(quarantine) == 10_000
    lines = {(row["row"], row["reason"]) for row in quarantine}
    shown = {(line.replace("\udcff\udcfe", "��"), reason) for line, reason in FAULTS.values()}
    assert lines == shown, "the row itself is kept"
    assert {row["source_file"] for row in quarantine} == {"a.csv", "b.csv"}


def test_a_row_is_parsed_once_also_on_the_way_to_the_quarantine(spark: SparkSession) -> None:
    """A filter that contains the parsing would parse a row several times, which is slow for quoted rows."""
    write_rows(("1", "1600000000"))
    settings = DatasetSettings()
    typed = cleaned(read_rows(spark, raw_files(settings.source), settings.source), settings)
    copied = typed.where("reason is not null").groupBy("reason").count()
    for frame, is_copied in ((unreadable(typed), False), (accepted(typed, 2), False), (copied, True)):
        plan = frame._jdf.queryExecution().optimizedPlan().toString()  # type: ignore[operator]
        conditions = [line for line in plan.splitlines() if "Filter" in line]
        assert conditions and any("from_csv" in line for line in conditions) == is_copied


def test_equal_rows_collapse_to_the_first_place(spark: SparkSession) -> None:
    Path("r.csv").write_text(
        f"{HEADER}\n1,10,5,1600000000\n1,10,5.0,1600000000\n1,10,4,1600000000\n 1 ,10,5,1600000000\n"
    )
    settings = DatasetSettings()
    typed = cleaned(read_rows(spark, raw_files(settings.source), settings.source), settings)
    rows = accepted(typed, 2).orderBy("position").collect()
    assert [(r["raw_user_id"], r["relevance"], r["timestamp"]) for r in rows] == [
        ("1", 5.0, 1_600_000_000),
        ("1", 4.0, 1_600_000_000),
    ]
    assert rows[0]["position"] < rows[1]["position"]


def typed_values(spark: SparkSession, settings: DatasetSettings) -> list[tuple]:
    rows = read_rows(spark, raw_files(settings.source), settings.source)
    typed = cleaned(rows, settings).orderBy("position").collect()
    return [(r["relevance"], r["timestamp"], r["reason"]) for r in typed if r["reason"] != HEADER_AGAIN]


def write_rows(*pairs: tuple[str, str]) -> None:
    Path("r.csv").write_text("\n".join([HEADER, *(f'u,i,{rating},"{time}"' for rating, time in pairs)]) + "\n")


MICROS = 1_620_727_200_123_000
SECONDS = MICROS // 1_000_000
DAY = SECONDS // 86_400 * 86_400


@pytest.mark.parametrize(
    ("time_format", "unit", "times"),
    [
        ("s", "s", {str(SECONDS): SECONDS, f"{SECONDS}.0": SECONDS, f" {SECONDS} ": SECONDS, f"{SECONDS}.5": None}),
        ("ms", "ms", {str(MICROS // 1000): MICROS // 1000, str(SECONDS): None}),
        ("us", "us", {str(MICROS): MICROS}),
        (
            "iso",
            "us",
            {
                "2021-05-11T10:00:00.123Z": MICROS,
                "2021-05-11 13:00:00.123+03:00": MICROS,
                "2021-05-11": DAY * 1_000_000,
                "11.05.2021": None,
                "2021-02-30": None,
                "12:34:56": None,
                "2021": None,
            },
        ),
        ("yyyy-MM-dd", "s", {"2021-05-11": DAY, "2021-13-11": None, "1821-05-11": None, "2921-05-11": None}),
        ("dd.MM.yyyy HH:mm:ss", "s", {"11.05.2021 10:00:00": SECONDS, "11.05.2021": None}),
        ("yyyy-MM-dd HH:mm:ss.SSS", "us", {"2021-05-11 10:00:00.123": MICROS}),
    ],
)
def test_time_formats_keep_all_of_their_order(spark: SparkSession, time_format: str, unit: str, times: dict) -> None:
    settings = DatasetSettings(source=SourceSettings(time_format=time_format))
    write_rows(*(("1", time) for time in times))
    found = typed_values(spark, settings)
    assert [None if reason else timestamp for _, timestamp, reason in found] == list(times.values())
    assert timestamp_unit(read_rows(spark, raw_files(settings.source), settings.source), settings.source) == unit


def test_the_sane_range_can_be_moved_or_left_out(spark: SparkSession) -> None:
    write_rows(("1", "7"), ("1", str(epoch_ticks("2020-01-01", "s"))))
    open_ended = DatasetSettings(clean=CleanSettings(earliest="", latest="2020-01-01"))
    assert [reason for _, _, reason in typed_values(spark, open_ended)] == [None, "timestamp is not before 2020-01-01"]


def test_half_stars_fractions_and_odd_numbers(spark: SparkSession) -> None:
    ratings = ["0.5", "4.5", "3.14159", "-1", "1e1", "+2", "inf", "5d"]
    write_rows(*((rating, "1600000000") for rating in ratings))
    found = typed_values(spark, DatasetSettings())
    assert [relevance for relevance, _, reason in found if not reason] == [0.5, 4.5, 3.14159, -1.0, 10.0, 2.0]
    assert [reason for *_, reason in found[-2:]] == ["rating is not finite", "rating is not a number"]


@pytest.mark.parametrize(
    ("negative", "expected"),
    [
        (("skipped", "false"), [1.0, 1.0, 0.0, None, 0.0, None]),
        ((), [1.0, 1.0, 0.0, 0.0, 0.0, None]),
    ],
)
def test_labels_are_positive_negative_or_unreadable(spark: SparkSession, negative: tuple, expected: list) -> None:
    rule = FeedbackSettings(threshold="labels", positive_labels=("liked", "true"), negative_labels=negative)
    write_rows(*((label, "1600000000") for label in ("liked", "True", "skipped", "seen", "FALSE", "")))
    found = typed_values(spark, DatasetSettings(feedback=rule))
    assert [None if reason else relevance for relevance, _, reason in found] == expected


TIMES_OF_COLUMNS = {"us": MICROS, "zoned": MICROS, "day": DAY, "seconds": SECONDS, "double": SECONDS}


def test_parquet_types_times_and_booleans(spark: SparkSession) -> None:
    moment = datetime.datetime(2021, 5, 11, 10, 0, 0, 123_000)
    columns = {
        "user": [7.0, 8.0, float("nan")],
        "item": ["a", "b", "c"],
        "liked": [True, False, True],
        "us": pa.array([moment] * 3, pa.timestamp("us")),
        "zoned": pa.array([moment] * 3, pa.timestamp("ms", tz="UTC")),
        "day": pa.array([moment.date()] * 3, pa.date32()),
        "seconds": [SECONDS] * 3,
        "double": [float(SECONDS)] * 3,
        "fraction": [SECONDS + 0.5] * 3,
    }
    pq.write_table(pa.table(columns), "r.parquet")
    rule = FeedbackSettings(threshold="labels", positive_labels=("true",), negative_labels=("false",))
    source = SourceSettings(format="parquet", files="*.parquet", relevance="liked")
    for name, expected in TIMES_OF_COLUMNS.items():
        found = typed_values(spark, DatasetSettings(source=replace(source, timestamp=name), feedback=rule))
        assert [row[:2] for row in found[:2]] == [(1.0, expected), (0.0, expected)]
        assert found[2][2] == "user is empty"
    found = typed_values(spark, DatasetSettings(source=replace(source, timestamp="fraction"), feedback=rule))
    assert found[0][2] == "fraction is not a number (s since 1970)"
