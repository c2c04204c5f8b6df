"""Logs as people have them: read right, or refused in one line. The right values are computed here, without Spark."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.preparation import Place, cleaned, prepared_in
from pyspark.sql import Row, SparkSession

from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import override
from pnfrec_dist.data.schema import Manifest, read_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.raw_files import find_raw
from spark_jobs.sources import check_files, read_rows

pytestmark = pytest.mark.integration
ROWS = [
    (f"u{t % 30}", f"i{(t * 7 + t // 30) % 20}", 1 + (t * t // 7 + t) % 5, 1_600_000_000 + 3600 * t) for t in range(600)
]
"""(user, item, relevance, time)"""
USERS, ITEMS, RATINGS, TIMES = (list(column) for column in zip(*ROWS, strict=True))
HEADER = "user,item,rating,timestamp"
SPLIT = int(np.quantile(TIMES, 0.9, method="nearest"))


@dataclass
class Log:
    """A directory with raw files and conf/dataset/mylogs.yaml; prepare() builds it."""

    spark: SparkSession
    directory: Path
    capsys: pytest.CaptureFixture[str]
    printed: str = ""
    warned: str = ""

    @property
    def raw(self) -> Path:
        return self.directory / "raw"

    def write(self, rows: list[tuple[Any, ...]], name: str = "log.csv", header: str = HEADER) -> None:
        (self.raw / name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")

    def write_parquet(self, **columns: Any) -> None:
        own = {"user": USERS, "item": ITEMS, "rating": RATINGS, "timestamp": TIMES}
        pq.write_table(pa.table(own | columns), self.raw / "log.parquet")

    def prepare(self, *flags: str, **sections: dict[str, Any]) -> Manifest:
        conf = {"split": {"min_positives": 0}, "feedback": {"threshold": 4}, **sections}
        (self.directory / "conf/dataset/mylogs.yaml").write_text(yaml.safe_dump(conf))
        self.printed = prepared_in(self.spark, self.directory, "--dataset", "mylogs", "--raw", "raw", *flags)
        self.warned = self.capsys.readouterr().err
        return read_manifest(Location(self.directory / "data/prepared/mylogs"))

    def cleaned(self, **sections: dict[str, Any]) -> list[Row]:
        """The good rows, without the rest of the build."""
        settings = override(DatasetSettings(), sections, "conf")
        files = find_raw("mylogs", Place(str(self.raw), settings.source))
        check_files(files, settings.source)
        rows = cleaned(read_rows(self.spark, files, settings.source), settings)
        return rows.where("reason IS NULL").orderBy("position").collect()

    def refused(self, *flags: str, **sections: dict[str, Any]) -> str:
        with pytest.raises(InputError) as caught:
            self.prepare(*flags, **sections)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def items(self) -> list[str]:
        table = pq.read_table(self.directory / "data/prepared/mylogs/items.parquet")
        return table["raw_item_id"].to_pylist()

    def titles(self) -> dict[str, str]:
        """Raw item id -> title."""
        table = pq.read_table(self.directory / "data/prepared/mylogs/titles.parquet")
        raw = self.items()
        return {raw[row["item_id"] - 1]: row["title"] for row in table.to_pylist()}


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Log:
    for name in ("raw", "conf/dataset"):
        (tmp_path / name).mkdir(parents=True)
    return Log(spark, tmp_path, capsys)


PARQUET = {"format": "parquet", "files": "*.parquet"}


def positives(manifest: Manifest) -> int:
    return manifest.counts["filtered"]["positives"]


# ---- numbers and types


def test_a_float32_counts_as_its_shortest_decimal(log: Log) -> None:
    shares = [x / 10 + 0.3 for x in RATINGS]
    log.write_parquet(rating=pa.array(shares, pa.float32()))
    expected = sum(round(share, 6) >= 0.7 for share in shares)
    assert expected == 273
    assert positives(log.prepare(source=PARQUET, feedback={"threshold": 0.7})) == expected
    by_quantile = log.prepare("--force", source=PARQUET, feedback={"threshold": "quantile", "quantile": 0.6})
    assert by_quantile.threshold in {0.4, 0.5, 0.6, 0.7, 0.8}
    rule = {"threshold": "labels", "positive_labels": ["0.7", "0.80"]}
    assert positives(log.prepare("--force", source=PARQUET, feedback=rule)) == expected


def test_a_label_that_is_a_number_is_compared_as_one(log: Log) -> None:
    likes = [int(x >= 4) for x in RATINGS]
    half = len(ROWS) // 2
    spelled = [str(x) for x in likes[:half]] + [f"{x}.0" for x in likes[half:]]
    log.write([(u, i, x, t) for (u, i, _, t), x in zip(ROWS, spelled, strict=True)])
    assert positives(log.prepare(feedback={"threshold": "labels", "positive_labels": ["1"]})) == sum(likes)
    counts = {f"1 ({sum(likes[:half])})", f"1.0 ({sum(likes[half:])})"}
    assert set(re.findall(r"positive: (.*); negative", log.printed)[0].split(", ")) == counts


def test_labels_that_do_not_match_are_said_with_counts(log: Log) -> None:
    names = {5: "like", 4: "like", 3: "skip", 2: "skip", 1: "pause"}
    log.write([(u, i, names[x], t) for u, i, x, t in ROWS])
    count = {label: sum(names[x] == label for x in RATINGS) for label in ("like", "skip", "pause")}
    log.prepare(feedback={"threshold": "labels", "positive_labels": ["like", "love"]})
    assert (
        f"positive: like ({count['like']}); negative: skip ({count['skip']}), pause ({count['pause']})" in log.printed
    )
    assert "WARNING: no row has the label love" in log.warned
    said = log.refused("--force", feedback={"threshold": "labels", "positive_labels": ["liked"]})
    assert (
        "no row has a label of feedback.positive_labels (liked); rating has " in said
        and f"like ({count['like']})" in said
    )
    rule = {"threshold": "labels", "positive_labels": ["like"], "negative_labels": ["skip"]}
    log.prepare("--force", feedback=rule, clean={"max_quarantine_share": 0.5})
    assert f"are no label and were left out: pause ({count['pause']})" in log.warned


READ = {
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "decimal": pa.decimal128(20, 0),
    "decimal with a fraction": pa.decimal128(12, 2),
    "string_view": pa.string_view(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "double": pa.float64(),
}


@pytest.mark.parametrize("kind", READ)
def test_ids_of_every_type_are_read(log: Log, kind: str) -> None:
    whole = [int(item[1:]) for item in ITEMS]
    values = [Decimal(number) for number in whole] if "decimal" in kind else whole
    texts = [str(number).encode() if "binary" in kind else str(number) for number in whole]
    log.write_parquet(item=pa.array(texts if "string" in kind or "binary" in kind else values, READ[kind]))
    assert [row["raw_item_id"] for row in log.cleaned(source=PARQUET)] == [str(number) for number in whole]


REFUSED: dict[str, Callable[[], pa.Array]] = {
    "halffloat": lambda: pa.array(np.arange(600) % 20, pa.float32()).cast(pa.float16()),
    "time64[us]": lambda: pa.array(np.arange(600), pa.time64("us")),
    "duration[s]": lambda: pa.array(np.arange(600), pa.duration("s")),
    "null": lambda: pa.nulls(600),
    "list<element: int64>": lambda: pa.array([[n] for n in range(600)]),
    "struct<a: int64>": lambda: pa.array([{"a": n} for n in range(600)]),
    "decimal256(40, 0)": lambda: pa.array(range(600), pa.decimal256(40, 0)),
}


@pytest.mark.parametrize("role", ["item", "rating", "timestamp"])
@pytest.mark.parametrize("kind", REFUSED)
def test_columns_of_other_types_are_refused(log: Log, kind: str, role: str) -> None:
    log.write_parquet(**{role: REFUSED[kind]()})
    assert re.search(
        rf"column '{role}' \(source\.\w+\) is {re.escape(kind)}; write it as ", log.refused(source=PARQUET)
    )


def test_one_item_spelled_in_two_ways_is_one_item(log: Log) -> None:
    """A column of whole numbers that once had a gap was written as fractions."""
    rows = [(u[1:], i[1:], x, t) for u, i, x, t in ROWS]
    log.write(rows[:300], "a.csv")
    log.write([(f"{u}.0", f"{i}.0", x, t) for u, i, x, t in rows[300:]], "b.csv")
    two_files = log.prepare()
    assert len(log.items()) == 20 and two_files.counts["filtered"]["users"] == 30
    assert "item: 300 whole numbers like 104.0 are read as 104" in log.printed
    (log.raw / "a.csv").unlink()
    log.write(rows, "b.csv")
    assert log.prepare().digest == two_files.digest
    lines = [
        {"user": int(u), "item": float(i) if t % 7200 else int(i), "rating": x, "timestamp": t} for u, i, x, t in rows
    ]
    (log.raw / "log.json").write_text("\n".join(map(json.dumps, lines)))
    assert log.prepare(source={"format": "json", "files": "*.json"}).digest == two_files.digest


def test_two_spellings_among_other_ids_are_warned_of(log: Log) -> None:
    log.write([(u, {"i3": "3", "i4": "3.0"}.get(i, i), x, t) for u, i, x, t in ROWS])
    log.prepare()
    assert len(log.items()) == 20
    assert "WARNING: item has '3' and '3.0'; they are kept as two ids" in log.warned


def test_text_ids_in_json_may_look_like_arrays_and_objects(log: Log) -> None:
    odd = {"i3": "[unknown]", "i4": "{untitled}", "i5": '["a"]', "i6": "[]"}
    lines = [json.dumps({"user": u, "item": odd.get(i, i), "rating": x, "timestamp": t}) for u, i, x, t in ROWS]
    for nested in ('["a"]', '{"a": 1}', "[]", "{}"):
        lines.append(f'{{"user": "u1", "item": {nested}, "rating": 1, "timestamp": 1600000000}}')
    (log.raw / "log.json").write_text("\n".join(lines))
    manifest = log.prepare(source={"format": "json", "files": "*.json"})
    assert set(odd.values()) < set(log.items()) and manifest.counts["quarantined"] == {
        "rows": 4,
        "item is no text and no number": 4,
    }


# ---- times


def spelled(pattern: str) -> list[str]:
    return [datetime.fromtimestamp(t, UTC).strftime(pattern) for t in TIMES]


TIME_TEXTS = {
    "EEE MMM dd HH:mm:ss Z yyyy": "%a %b %d %H:%M:%S +0000 %Y",
    "EEE, dd MMM yyyy HH:mm:ss Z": "%a, %d %b %Y %H:%M:%S +0000",
    "MM/dd/yy HH:mm:ss": "%m/%d/%y %H:%M:%S",
    "MM/dd/yyyy hh:mm:ss a": "%m/%d/%Y %I:%M:%S %p",
    "yyyy-DDD HH:mm:ss": "%Y-%j %H:%M:%S",
    "yyyyMMddHHmmss": "%Y%m%d%H%M%S",
}


@pytest.mark.parametrize("pattern", TIME_TEXTS)
def test_times_as_text(log: Log, pattern: str) -> None:
    texts = spelled(TIME_TEXTS[pattern])
    log.write([(u, i, x, f'"{text}"') for (u, i, x, _), text in zip(ROWS, texts, strict=True)])
    assert [row["timestamp"] for row in log.cleaned(source={"time_format": pattern})] == TIMES


def test_a_zone_in_the_text_is_kept(log: Log) -> None:
    """As in Goodreads: 05:26:40 in the zone -0700 is 12:26:40 in UTC."""
    texts = [datetime.fromtimestamp(t - 7 * 3600, UTC).strftime("%a %b %d %H:%M:%S -0700 %Y") for t in TIMES]
    assert texts[0] == "Sun Sep 13 05:26:40 -0700 2020"
    log.write([(u, i, x, text) for (u, i, x, _), text in zip(ROWS, texts, strict=True)])
    found = log.cleaned(source={"time_format": "EEE MMM dd HH:mm:ss Z yyyy"})
    assert [row["timestamp"] for row in found] == TIMES


def test_years_of_two_digits_cross_the_century(log: Log) -> None:
    start = datetime(1999, 10, 1, tzinfo=UTC).timestamp()
    hours = [start + 8 * 3600 * n + 13 * 60 for n in range(600)]
    log.write(
        [
            (u, i, x, datetime.fromtimestamp(t, UTC).strftime("%m/%d/%y %H:%M"))
            for (u, i, x, _), t in zip(ROWS, hours, strict=True)
        ]
    )
    manifest = log.prepare(source={"time_format": "MM/dd/yy HH:mm"})
    assert manifest.split_timestamp == int(np.quantile(hours, 0.9, method="nearest"))
    assert "after today" not in log.warned


def test_times_after_today_are_warned_of(log: Log) -> None:
    log.write([(u, i, x, t + 10 * 365 * 86_400) for u, i, x, t in ROWS])
    log.prepare()
    assert (
        "WARNING: the newest timestamp is 2030-10-0" in log.warned
        and "after today; check source.time_format" in log.warned
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("yyyy-mm-dd", "the month (MM) is missing; mm are minutes"),
        ("MM-dd HH:mm", "the year (yyyy) is missing"),
        ("yyyy-MM", "the day (dd) is missing"),
        ("yyyy-MM-dd hh:mm:ss", "AM or PM (a) is missing; hours from 0 to 23 are HH, not hh"),
        ("yyyy-MM-dd mm:ss", "there are minutes (mm) without hours (HH)"),
        ("yyyy-MM-dd HH:ss", "there are seconds (ss) without minutes (mm)"),
        ("sec", "the year (yyyy) is missing"),
        ("'yyyy' MM-dd", "the year (yyyy) is missing"),
    ],
)
def test_a_pattern_without_a_date_or_with_half_a_time_is_refused(log: Log, pattern: str, said: str) -> None:
    assert log.refused(source={"time_format": pattern}).endswith(
        f"here, {said}" + "; the month is MM" * ("hours (HH)" in said)
    )


def test_numbers_with_a_fraction_keep_their_order(log: Log) -> None:
    log.write([(u, i, x, f"{t}.{n % 8}25") for n, (u, i, x, t) in enumerate(ROWS)])
    manifest = log.prepare()
    at = TIMES.index(SPLIT)
    assert (manifest.split_timestamp, manifest.timestamp_unit) == (SPLIT * 10**6 + (at % 8) * 100_000 + 25_000, "us")


def test_nanoseconds(log: Log) -> None:
    log.write([(u, i, x, t * 10**9 + 1) for u, i, x, t in ROWS])
    found = log.cleaned(source={"time_format": "ns"})
    assert [row["timestamp"] for row in found] == [t * 10**9 + 1 for t in TIMES]


def test_times_as_spark_and_pandas_write_them(log: Log) -> None:
    moments = pa.array([t * 10**9 for t in TIMES], pa.timestamp("ns"))
    log.write_parquet(timestamp=moments)
    nanos = log.cleaned(source=PARQUET)
    assert [row["timestamp"] for row in nanos] == [t * 10**6 for t in TIMES]
    own = {"user": USERS, "item": ITEMS, "rating": RATINGS, "timestamp": moments}
    pq.write_table(pa.table(own), log.raw / "log.parquet", use_deprecated_int96_timestamps=True)
    assert pq.read_metadata(log.raw / "log.parquet").schema.column(3).physical_type == "INT96"
    assert log.cleaned(source=PARQUET) == nanos


def test_a_log_of_one_moment_is_told(log: Log) -> None:
    log.write([(u, i, x, 1_600_000_000) for u, i, x, _ in ROWS])
    assert "every interaction has the timestamp 2020-09-13 12:26:40 UTC, so no row can be before T" in log.refused()
    log.write([(u, i, x, 1_600_000_000 + max(0, n - 570)) for n, (u, i, x, _) in enumerate(ROWS)])
    said = log.refused()
    assert "95.2% of the interactions have this timestamp, the earliest; raise --split.quantile above" in said


def test_without_a_time_the_order_of_rows_is_the_order(log: Log) -> None:
    """Whatever the partitions: small blocks, and several files."""
    for name, rows in (("a.csv", ROWS[:250]), ("b.csv", ROWS[250:])):
        log.write([row[:3] for row in rows], name, "user,item,rating")
    source = {"timestamp": "none", "order": "rows"}
    by_row = log.prepare(source=source)
    first_data_row = 250 + 2  # two headers before it
    assert (by_row.split_timestamp, by_row.timestamp_unit) == (TIMES.index(SPLIT) + 2, "rows")
    assert f"T = {by_row.split_timestamp} (row {by_row.split_timestamp:,} of the source)" in log.printed
    assert first_data_row < by_row.split_timestamp
    log.spark.conf.set("spark.sql.files.maxPartitionBytes", "1000")
    try:
        cut = log.prepare("--force", source=source)
    finally:
        log.spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert cut.digest == by_row.digest
    for name in ("a.csv", "b.csv"):
        (log.raw / name).unlink()
    pq.write_table(pa.table({"user": USERS, "item": ITEMS, "rating": RATINGS}), log.raw / "log.parquet")
    assert log.prepare(source=source | PARQUET).split_timestamp == TIMES.index(SPLIT)
    said = log.refused(source={"timestamp": "none"})
    assert "source.order is 'time'; it must be rows, because source.timestamp is none" in said


# ---- what cannot be learned


def test_users_who_have_met_every_item_are_told(log: Log) -> None:
    """Any list then holds the target: popularity has NDCG 1 as well as every model."""
    met = [(f"u{n % 10}", f"i{n // 10 % 12}", 1 + n % 5, 1_600_000_000 + n) for n in range(600)]
    log.write(met)
    log.prepare()
    assert re.search(r"WARNING: \d+ of \d+ test users have seen all but 9 items or fewer", log.warned)


# ---- text


def test_likes_alone_need_no_relevance(log: Log) -> None:
    log.write([(u, i, t) for u, i, _, t in ROWS], header="user,item,timestamp")
    manifest = log.prepare(source={"relevance": "none"}, feedback={})
    assert positives(manifest) == 600 and manifest.counts["filtered"]["rows"] == 600
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
    for ends in ("", "\n", "\n\n \n"):
        log.write(ROWS[:95], "a.csv")
        log.write(ROWS[95:190], "b.csv")
        for name in ("a.csv", "b.csv"):
            with (log.raw / name).open("a") as file:
                file.write(ends)
        manifest = log.prepare("--force", filter={"min_users_per_item": 0, "min_items_per_user": 0})
        assert manifest.counts["read"]["rows"] == 190 and manifest.counts["quarantined"]["rows"] == 0
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


# ---- titles


def write_titles(log: Log, lines: list[str], name: str = "items.csv", encoding: str = "utf-8") -> None:
    (log.raw / name).write_bytes("\n".join(lines).encode(encoding))


def test_a_title_that_begins_with_a_quote_takes_no_other_title_with_it(log: Log) -> None:
    log.write(ROWS)
    names = {f"i{n}": f"Title {n}" for n in range(20)}
    names["i7"] = '"Heroes'
    names["i9"] = 'The "Best" of' + " long" * 40_000
    write_titles(log, ["item\ttitle", *(f"{item}\t{title}" for item, title in names.items())], "items.tsv")
    log.prepare(titles={"file": "items.tsv", "separator": "\t"})
    assert log.titles() == names
    quoted = {f"i{n}": f"Title {n}" for n in range(20)} | {"i3": 'Say "yes",\nplease', "i4": "a, b"}
    lines = [f'{item},"{title.replace(chr(34), chr(34) * 2)}"' for item, title in quoted.items()]
    write_titles(log, ["item,title", *lines], "items.csv")
    log.prepare(titles={"file": "items.csv"})
    assert log.titles() == quoted
    plain = [f'{item},"{item}"' for item in names]
    write_titles(log, ["item,title", *plain], "items.csv")
    log.prepare(titles={"file": "items.csv", "quote": ""})
    assert log.titles() == {item: f'"{item}"' for item in names}


@pytest.mark.parametrize("byte", [b"\x85", b"\x1c", b"\x0b", b"\xa0"])
def test_a_title_ends_at_a_line_feed_alone(log: Log, byte: bytes) -> None:
    log.write(ROWS)
    (log.raw / "items.csv").write_bytes(b"item,title\r\ni3,Wait" + byte + b" What\r\n")
    log.prepare(titles={"file": "items.csv", "encoding": "latin-1"})
    assert log.titles() == {"i3": f"Wait{byte.decode('latin-1')} What"}


def test_the_file_of_titles_is_no_log(log: Log) -> None:
    log.write(ROWS)
    write_titles(log, ["item_id,name", "i3,Three"])
    log.prepare(titles={"file": "items.csv", "item": "item_id", "title": "name"})
    assert log.titles() == {"i3": "Three"}


def test_titles_of_whole_numbers_with_zeros_find_their_items(log: Log) -> None:
    log.write([(u, i[1:], x, t) for u, i, x, t in ROWS])
    write_titles(log, ["item,title", "3.0,Three", "4,Four"])
    log.prepare(titles={"file": "items.csv"})
    assert log.titles() == {"3": "Three", "4": "Four"}
