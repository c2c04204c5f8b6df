"""Columns of logs as people have them: read right, or refused in one line."""

import json
import re
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.logs import ITEMS, PARQUET, RATINGS, ROWS, TIMES, USERS, Log, positives

pytestmark = pytest.mark.integration


def test_a_float32_counts_as_its_shortest_decimal(log: Log) -> None:
    shares = [x / 10 + 0.3 for x in RATINGS]
    log.write_parquet(rating=pa.array(shares, pa.float32()))
    expected = sum(round(share, 6) >= 0.7 for share in shares)
    assert expected == 273
    assert positives(log.prepare(source=PARQUET, feedback={"threshold": 0.7})) == expected  # a whole build
    found = log.cleaned(source=PARQUET, feedback={"threshold": "labels", "positive_labels": ["0.7", "0.80"]})
    assert sum(row["relevance"] for row in found) == expected
    assert {row["relevance"] for row in log.cleaned(source=PARQUET)} == {0.4, 0.5, 0.6, 0.7, 0.8}


def test_a_label_that_is_a_number_is_compared_as_one(log: Log) -> None:
    likes = [int(x >= 4) for x in RATINGS]
    half = len(ROWS) // 2
    spelled = [str(x) for x in likes[:half]] + [f"{x}.0" for x in likes[half:]]
    log.write([(u, i, x, t) for (u, i, _, t), x in zip(ROWS, spelled, strict=True)])
    found = log.read(feedback={"threshold": "labels", "positive_labels": ["1"]})
    assert found.likes == sum(likes)
    counts = {f"1 ({sum(likes[:half])})", f"1.0 ({sum(likes[half:])})"}
    assert set(re.findall(r"positive: (.*); negative", found.printed)[0].split(", ")) == counts


def test_labels_that_do_not_match_are_said_with_counts(log: Log) -> None:
    names = {5: "like", 4: "like", 3: "skip", 2: "skip", 1: "pause"}
    log.write([(u, i, names[x], t) for u, i, x, t in ROWS])
    count = {label: sum(names[x] == label for x in RATINGS) for label in ("like", "skip", "pause")}
    log.prepare(feedback={"threshold": "labels", "positive_labels": ["like", "love"]})
    told = f"positive: like ({count['like']}); negative: skip ({count['skip']}), pause ({count['pause']})"
    assert told in log.printed
    assert "WARNING: no row has the label love" in log.warned
    said = log.refused("--force", feedback={"threshold": "labels", "positive_labels": ["liked"]})
    assert (
        "no row has a label of feedback.positive_labels (liked); rating has " in said
        and f"like ({count['like']})" in said
    )
    rule = {"threshold": "labels", "positive_labels": ["like"], "negative_labels": ["skip"]}
    found = log.read(feedback=rule, clean={"max_quarantine_share": 0.5})
    assert f"are no label and were left out: pause ({count['pause']})" in found.warnings


def test_likes_may_be_rarer_than_the_labels_that_are_listed(log: Log) -> None:
    log.write([(u, i, "like" if n % 50 == 49 else f"other {n % 30}", t) for n, (u, i, _, t) in enumerate(ROWS)])
    found = log.read(feedback={"threshold": "labels", "positive_labels": ["like"]})
    assert found.likes == 12 and "like (" not in found.printed and "negative: other" in found.printed
    assert "no row has the label" not in found.warnings


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
    two_files = log.read()
    assert [(row["raw_user_id"], row["raw_item_id"]) for row in two_files.rows] == [(u, i) for u, i, *_ in rows]
    assert "item: 300 whole numbers like 104.0 are read as 104" in two_files.printed
    lines = [
        {"user": int(u), "item": float(i) if t % 7200 else int(i), "rating": x, "timestamp": t} for u, i, x, t in rows
    ]
    (log.raw / "log.json").write_text("\n".join(map(json.dumps, lines)))
    from_json = log.read(source={"format": "json", "files": "*.json"})
    pairs = [[row[:4] for row in found.rows] for found in (from_json, two_files)]
    assert pairs[0] == pairs[1]


def test_two_spellings_among_other_ids_are_warned_of(log: Log) -> None:
    log.write([(u, {"i3": "3", "i4": "3.0"}.get(i, i), x, t) for u, i, x, t in ROWS])
    found = log.read()
    assert len({row["raw_item_id"] for row in found.rows}) == 20
    assert "item has '3' and '3.0'; they are kept as two ids" in found.warnings


def test_text_ids_in_json_may_look_like_arrays_and_objects(log: Log) -> None:
    odd = {"i3": "[unknown]", "i4": "{untitled}", "i5": '["a"]', "i6": "[]"}
    lines = [json.dumps({"user": u, "item": odd.get(i, i), "rating": x, "timestamp": t}) for u, i, x, t in ROWS]
    for nested in ('["a"]', '{"a": 1}', "[]", "{}"):
        lines.append(f'{{"user": "u1", "item": {nested}, "rating": 1, "timestamp": 1600000000}}')
    (log.raw / "log.json").write_text("\n".join(lines))
    found = [row["raw_item_id"] for row in log.cleaned(source={"format": "json", "files": "*.json"})]
    assert found == [odd.get(item, item) for item in ITEMS], "without the nested ones"


def test_columns_may_have_the_names_of_the_program_s_own(log: Log) -> None:
    names = ["in_file", "file_path", "file_number", "line"]
    table = pa.table([USERS, ITEMS, RATINGS, TIMES], names=names)
    for number, (start, end) in enumerate(((0, 250), (250, 600))):
        pq.write_table(table.slice(start, end - start), log.raw / f"{number}.parquet")
    roles = dict(zip(("user", "item", "relevance", "timestamp"), names, strict=True))
    found = log.read(source=PARQUET | roles | {"where": "file_number >= 1 and in_file is not null"})
    assert [(r["raw_user_id"], r["raw_item_id"], r["relevance"], r["timestamp"]) for r in found.rows] == ROWS
