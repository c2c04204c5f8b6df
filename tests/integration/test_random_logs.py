"""Random logs, written by pandas and pyarrow in every format, against the whole preparation in plain pandas."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.plain_protocol import COLUMNS, Frame, TooSmallError, expected_build, require_equal
from helpers.preparation import build
from pyspark.sql import SparkSession

from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import override

pytestmark = pytest.mark.integration
START = 1_600_000_000
PATTERNS = {
    "yyyy-MM-dd HH:mm:ss": "%Y-%m-%d %H:%M:%S",
    "dd/MM/yy HH:mm:ss": "%d/%m/%y %H:%M:%S",
    "EEE MMM dd HH:mm:ss Z yyyy": "%a %b %d %H:%M:%S +0000 %Y",
    "MM/dd/yyyy hh:mm:ss a": "%m/%d/%Y %I:%M:%S %p",
}
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ODD = ["Ünï", "a b", "7up", "[x]", "{y}", "0012", "a,b", 'say "hi"', "Ω", "-5x"]


def ids(rng: np.random.Generator, count: int, kind: str) -> list[Any]:
    """Distinct ids."""
    numbers = rng.choice(10_000, count, replace=False)
    if kind == "whole":
        return [int(number) for number in numbers]
    if kind == "odd":
        return [f"{ODD[n % len(ODD)]}{number}" for n, number in enumerate(numbers)]
    return [f"u{number}" for number in numbers]


def times(
    rng: np.random.Generator, seconds: np.ndarray, text: bool
) -> tuple[list[Any], list[int], dict[str, Any], Any]:
    """(values to write, what they mean, settings, type in Parquet)."""
    names = ["s", "ms", "us", "ns", "fraction", "iso", *PATTERNS, *([] if text else ["timestamp[us]", "timestamp[ns]"])]
    name = str(rng.choice(names))
    moments = pd.to_datetime(seconds, unit="s", utc=True)
    if name in TICKS:
        ticks = [int(t) * TICKS[name] for t in seconds]
        return ticks, ticks, {"time_format": name}, pa.int64()
    if name == "fraction":
        quarters = rng.integers(0, 4, len(seconds))
        values = [float(t) + q / 4 for t, q in zip(seconds, quarters, strict=True)]
        unit = 10**6 if quarters.any() else 1
        return values, [int(value * unit) for value in values], {}, pa.float64()
    if name == "iso":
        return [m.isoformat() for m in moments], [int(t) * 10**6 for t in seconds], {"time_format": "iso"}, pa.string()
    if name in PATTERNS:
        return (
            [m.strftime(PATTERNS[name]) for m in moments],
            list(map(int, seconds)),
            {"time_format": name},
            pa.string(),
        )
    unit = name[-3:-1]
    values = [int(t) * TICKS[unit] for t in seconds]
    return values, [int(t) * 10**6 for t in seconds], {}, pa.timestamp(unit)


def relevances(rng: np.random.Generator, stars: np.ndarray, text: bool) -> tuple[list[Any], list[float], Any, Any]:
    """(values to write, what they mean, settings of feedback, type in Parquet)."""
    kind = str(rng.choice(["whole", "float32", "double", "label", *([] if text else ["decimal", "uint8"])]))
    numeric = [{"threshold": 4}, {"threshold": "median"}, {"threshold": "quantile", "quantile": 0.7}]
    rule: dict[str, Any] = numeric[rng.integers(len(numeric))]
    if kind == "label":
        values = ["Liked" if star > 3 else "skip" for star in stars]
        rule = {"threshold": "labels", "positive_labels": ["liked"], "negative_labels": ["Skip"]}
        return values, [float(star > 3) for star in stars], rule, pa.string()
    if kind in ("float32", "double"):
        shares = [round(float(star) / 10 + 0.3, 1) for star in stars]
        rule = {"threshold": 0.7} if rule == {"threshold": 4} else rule
        return shares, shares, rule, pa.float32() if kind == "float32" else pa.float64()
    if kind == "decimal":
        return [Decimal(int(star)) for star in stars], [float(star) for star in stars], rule, pa.decimal128(5, 2)
    return [int(star) for star in stars], [float(star) for star in stars], rule, pa.uint8()


def by_conditions(rng: np.random.Generator, meant: Frame) -> tuple[Frame, dict[str, Any], dict[str, Any]]:
    """(the rows that are likes or dislikes, settings of feedback, settings of the source) for rules as conditions.

    meant: COLUMNS, and `read`, the value of the column `how`: a label, stars, or a share.
    """
    values, feedback, source = meant["read"], {}, {}
    if isinstance(values[0], str):
        likes, dislikes, third = values == "Liked", values == "skip", values == "?"
        feedback = {"positive": "how = 'Liked'", "negative": "how LIKE 'sk%'"}
    else:
        low, high = (0.5, 0.7) if values.max() < 1 else (2, 4)
        likes, dislikes, third = values >= high, values <= low, (values > low) & (values < high)
        feedback = {"positive": f"how >= {high}", "negative": f"how <= {low}"}
        if rng.random() < 0.6:  # the rows between take likes back
            feedback |= {"undone": [feedback["positive"]], "undone_by": [f"how > {low} and how < {high}"]}
    if rng.random() < 0.3:
        dislikes = ~likes & ~third if "undone" in feedback else ~likes
        del feedback["negative"]
    wanted = values == values
    if rng.random() < 0.3:
        wanted = values != values[0]
        source = {"where": f"how != {values[0]!r}" if isinstance(values[0], str) else f"NOT how = {values[0]}"}
    undone = np.full(len(meant), np.nan)
    if "undone" in feedback:
        for _, rows in meant[wanted].sort_values("time", kind="stable").groupby(["user", "item"]):
            for place, row in enumerate(rows.index):
                later = [rows.time[other] for other in rows.index[place + 1 :] if third[other]]
                undone[row] = later[0] if later and likes[row] else np.nan
    meant = meant.assign(relevance=likes.astype(float), undone=undone)
    return meant[wanted & (likes | dislikes)], feedback, source


def random_log(rng: np.random.Generator, directory: Path) -> tuple[Frame, DatasetSettings]:
    """Writes one or two files; returns the rows as they are meant, and the settings."""
    count, fmt = int(rng.integers(250, 500)), str(rng.choice(["csv", "json", "parquet"]))
    kinds = [str(rng.choice(["whole", "text", "odd"])) for _ in range(2)]
    users, items = ids(rng, int(rng.integers(12, 30)), kinds[0]), ids(rng, int(rng.integers(10, 25)), kinds[1])
    seconds = START + np.sort(rng.integers(0, 400, count)) * int(rng.choice([1, 3600, 86_400]))
    if rng.random() < 0.5:
        rng.shuffle(seconds)
    user = [users[place] for place in rng.integers(0, len(users), count)]
    item = [items[place] for place in rng.zipf(1.4, count) % len(items)]
    stars = rng.integers(1, 6, count)
    is_text = fmt != "parquet"
    written_times, meant_times, time_settings, time_type = times(rng, seconds, is_text)
    written_relevances, meant_relevances, feedback, relevance_type = relevances(rng, stars, is_text)
    meant = pd.DataFrame(
        {"user": map(str, user), "item": map(str, item), "relevance": meant_relevances, "time": meant_times}
    )
    written = {"who": user, "what": item, "how": written_relevances, "when": written_times}
    source = {
        "format": fmt,
        "files": f"*.{fmt}",
        "user": "who",
        "item": "what",
        "relevance": "how",
        "timestamp": "when",
    }
    if rng.random() < 0.4:
        read = [float(v) if isinstance(v, int | Decimal) else v for v in written_relevances]
        meant, feedback, where = by_conditions(rng, meant.assign(read=read))
        source = {name: value for name, value in source.items() if name != "relevance"} | where
    source |= time_settings | write(rng, directory, fmt, written, kinds, relevance_type, time_type)
    sections = {
        "source": source,
        "feedback": feedback,
        "clean": {"duplicates": str(rng.choice(["keep_all", "keep_first", "keep_last"]))},
        "filter": {
            "min_users_per_item": int(rng.integers(0, 4)),
            "min_items_per_user": int(rng.integers(0, 4)),
            "iterate": bool(rng.random() < 0.5),
            "scope": str(rng.choice(["train", "all"])),
        },
        "split": {
            "quantile": float(rng.choice([0.6, 0.8, 0.9])),
            "assignment": "permutation",
            "min_positives": int(rng.integers(0, 3)),
        },
        "max_history": int(rng.choice([2, 5, 200])),
    }
    return meant[[*COLUMNS, *(["undone"] if "undone" in meant else [])]], override(DatasetSettings(), sections, "case")


def write(
    rng: np.random.Generator,
    directory: Path,
    fmt: str,
    columns: dict[str, list[Any]],
    kinds: list[str],
    how: Any,
    when: Any,
) -> dict[str, Any]:
    """Writes the columns, in two files for half of the logs. Returns settings of the source."""
    count = len(columns["who"])
    cut = int(rng.integers(1, count)) if rng.random() < 0.5 else count
    directory.mkdir(parents=True)
    settings: dict[str, Any] = {}
    separator, encoding = str(rng.choice([",", ";", "\t", "|"])), str(rng.choice(["utf-8", "cp1253"]))
    for number, (start, end) in enumerate(((0, cut), (cut, count))):
        part = {name: values[start:end] for name, values in columns.items()}
        file = directory / f"part-{number}.{fmt}"
        if start == end:
            continue
        if fmt == "parquet":
            types = {"who": pa.uint32() if kinds[0] == "whole" else pa.large_string()}
            types |= {"what": pa.int16() if kinds[1] == "whole" else pa.string(), "how": how, "when": when}
            pq.write_table(pa.table({name: pa.array(part[name], types[name]) for name in part}), file)
            continue
        if number == 1:  # a column of whole numbers with a gap: 7 is written as 7.0
            for name, kind in zip(("who", "what"), kinds, strict=True):
                part[name] = [float(value) for value in part[name]] if kind == "whole" else part[name]
        if fmt == "json":
            rows = [dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True)]
            text = "".join(json.dumps(row, ensure_ascii=bool(rng.random() < 0.5)) + "\n" for row in rows)
            file.write_text(text + "\n" * int(rng.integers(0, 3)), encoding="utf-8")
            continue
        is_other = encoding == "cp1253" and "odd" not in kinds
        settings = {"separator": separator, "encoding": encoding if is_other else "utf-8"}
        end_of_line = str(rng.choice(["\n", "\r\n"]))
        pd.DataFrame(part).to_csv(
            file, sep=separator, index=False, lineterminator=end_of_line, encoding=settings["encoding"]
        )
    return settings


def run_cases(spark: SparkSession, directory: Path, seeds: range) -> int:
    """Builds each log that is large enough, and compares all of it. Returns how many these were."""
    compared = 0
    for seed in seeds:
        raw, out = directory / f"raw{seed}", directory / f"out{seed}"
        rows, settings = random_log(np.random.default_rng(seed), raw)
        try:
            wanted = expected_build(rows, settings)
        except TooSmallError:
            continue
        try:
            require_equal(out, build(spark, raw, out, settings), wanted)
        except Exception as error:
            error.add_note(f"seed {seed}: {settings}")
            raise
        compared += 1
    return compared


@pytest.mark.timeout(600)
def test_random_logs_give_the_protocols_lists(spark: SparkSession, tmp_path: Path) -> None:
    """Spark interprets its plans here: each case has other plans, and compiling them takes longer than running them."""
    options = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}
    for name, value in options.items():
        spark.conf.set(name, value)
    try:
        assert run_cases(spark, tmp_path, range(4)) >= 3
    finally:
        for name in options:
            spark.conf.unset(name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_300_random_logs_give_the_protocols_lists(spark: SparkSession, tmp_path: Path) -> None:
    assert run_cases(spark, tmp_path, range(1000, 1300)) >= 210
