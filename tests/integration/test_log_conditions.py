"""Feedback and rows chosen by conditions in Spark SQL, from made logs to prepared lists."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.logs import ITEMS, PARQUET, RATINGS, TIMES, USERS, Log, Read

pytestmark = pytest.mark.integration
EVENTS = ["play", "like", "skip", "play", "dislike"]
NAMED = [EVENTS[rating - 1] for rating in RATINGS]
SHARES = [((t * 37) % 101) / 100 for t in range(600)]
LIKES = sum(event == "like" or share >= 0.7 for event, share in zip(NAMED, SHARES, strict=True))
SKIPS = sum(event == "skip" and share < 0.7 for event, share in zip(NAMED, SHARES, strict=True))
RULES = {"positive": "event = 'like' or share >= 0.7", "negative": "event = 'skip' and share < 0.7"}
HEADER = "user,item,event,share,timestamp"
TABLE = list(zip(USERS, ITEMS, NAMED, SHARES, TIMES, strict=True))


def read(log: Log, **sections: Any) -> Read:
    return log.read(**({"feedback": RULES} | sections))


def refused(log: Log, **sections: Any) -> str:
    return log.refused(**({"feedback": RULES} | sections))


def write_json(log: Log, rows: list[dict[str, Any]]) -> None:
    (log.raw / "log.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["csv", "json", "float32"])
def test_conditions_choose_likes_and_dislikes(log: Log, kind: str) -> None:
    """Numbers in text compare as numbers, and a float32 as its shortest decimal."""
    source: dict[str, Any] = {}
    if kind == "csv":
        log.write(TABLE, header=HEADER)
    elif kind == "json":
        write_json(log, [dict(zip(HEADER.split(","), row, strict=True)) for row in TABLE])
        source = {"format": "json", "files": "*.json"}
    else:
        event = pa.array(NAMED).dictionary_encode()
        table = {
            "user": USERS,
            "item": ITEMS,
            "event": event,
            "share": pa.array(SHARES, pa.float32()),
            "timestamp": TIMES,
        }
        pq.write_table(pa.table(table), log.raw / "log.parquet")
        source = PARQUET
    found = read(log, source=source)
    assert (found.likes, len(found.rows)) == (LIKES, LIKES + SKIPS)
    assert found.counts["neither"] == {"rows": 600 - LIKES - SKIPS}
    assert found.counts["read"]["rows"] == 600
    assert f"{LIKES} likes, {SKIPS} dislikes, {600 - LIKES - SKIPS} rows are neither" in found.printed


def test_without_a_negative_condition_every_other_row_is_a_dislike(log: Log) -> None:
    log.write(TABLE, header=HEADER)
    found = read(log, feedback={"positive": RULES["positive"]})
    assert (found.likes, len(found.rows)) == (LIKES, 600)


def test_where_filters_rows_before_they_are_checked(log: Log) -> None:
    rows = [*TABLE, *[("", "i1", "like", "", "no time")] * 50]
    log.write(rows, header=HEADER)
    found = read(log, source={"where": "user is not null and event != 'play'"})
    plays = NAMED.count("play")
    assert found.counts["where"] == {"rows": plays + 50}
    assert found.counts["quarantined"] == {"rows": 0}
    assert found.counts["read"] == {"rows": 650}
    wanted = sum(e != "play" and (e == "like" or s >= 0.7) for e, s in zip(NAMED, SHARES, strict=True))
    assert found.likes == wanted


def test_text_that_is_no_number_goes_to_the_quarantine(log: Log) -> None:
    log.write([*TABLE, ("u1", "i1", "like", "much", TIMES[-1])], header=HEADER)
    found = read(log)
    assert found.counts["quarantined"] == {"rows": 1, "share is not a number": 1}


def test_an_empty_field_is_null(log: Log) -> None:
    log.write([(u, i, e, s if s > 0.5 else "", t) for u, i, e, s, t in TABLE], header=HEADER)
    found = read(log, feedback={"positive": "share >= 0.7", "negative": "share is null"})
    assert found.likes == sum(share >= 0.7 for share in SHARES)
    assert len(found.rows) - found.likes == sum(share <= 0.5 for share in SHARES)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            "evnt = 'like'",
            "feedback.positive names the column 'evnt', which the source does not have; did you mean 'event'?",
        ),
        ("Event = 'like'", "write it as 'event'"),
        ("event =", "feedback.positive 'event =' cannot be read: Syntax error"),
        ("event = 'like' and share", "is no condition"),
        ("event", "is no condition"),
        ("a.event = 'like'", "names a.event; write `a.event` in backquotes if it is one column"),
        ("exists(select 1)", "has a subquery"),
        ("share in (select 1)", "has a subquery"),
        ("count(event) > 1", "is no condition"),
        ("my_udf(event) = 1", "is no condition: Cannot resolve routine `my_udf`"),
        ("event = 'like' and rand() > 0.5", "has rand(), which differs from build to build"),
        ("current_date() > date'2020-01-01'", "has current_date(), which differs from build to build"),
        ("reflect('java.lang.System', 'nanoTime') > '1'", "differs from build to build"),
        ("row_number() over (order by share) = 1", "is no condition"),
        ("event = 'like'; drop table x", "cannot be read: Syntax error"),
        ("cast(trim(event) as int) > 3", 'The value \'play\' of the type "STRING" cannot be cast to "INT"'),
        ("share / 0 > 1", "Division by zero"),
        ("event = 'likes'", "no row meets feedback.positive"),
        ("share >= 0", "meets both feedback.positive and feedback.negative"),
    ],
)
def test_a_wrong_condition_is_refused_in_a_line(log: Log, condition: str, said: str) -> None:
    log.write(TABLE, header=HEADER)
    assert said in refused(log, feedback=RULES | {"positive": condition})


def test_a_column_that_no_json_object_has_is_refused(log: Log) -> None:
    write_json(log, [dict(zip(HEADER.split(","), row, strict=True)) for row in TABLE])
    said = refused(
        log,
        source={"format": "json", "files": "*.json"},
        feedback={"positive": "evnt = 'like'"},
    )
    assert "feedback.positive names the column 'evnt', which no object of the source has" in said


def test_a_column_of_a_type_that_is_not_read_is_named(log: Log) -> None:
    log.write_parquet(event=pa.array([[name] for name in NAMED]))
    said = refused(log, source=PARQUET, feedback={"positive": "event = 'like'"})
    assert "feedback.positive names the column 'event'; it is list<" in said


def test_a_condition_that_no_row_meets_is_warned_of(log: Log) -> None:
    log.write(TABLE, header=HEADER)
    found = read(log, feedback=RULES | {"negative": "event = 'hate'"})
    assert "no row meets feedback.negative \"event = 'hate'\"" in found.warnings


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        ({"positive": "event = 'like'", "threshold": 4}, "feedback.threshold is 4"),
        ({"negative": "event = 'like'", "threshold": 4}, "feedback.negative"),
        ({"positive": "event = 'like'", "undone": ["event = 'like'"]}, "feedback.undone_by"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(log: Log, feedback: dict[str, Any], said: str) -> None:
    log.write(TABLE, header=HEADER)
    assert said in log.refused(feedback=feedback)
