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
        ("event = 'like' and share", "600 because share is not true or false"),
        ("event = 'like' or", "is no condition: Syntax error"),
        ("event = 'play' as x", "is no condition: Syntax error"),
        (
            "share >= event",
            "compares share and event as text, letter by letter; for numbers, write cast(share as double)",
        ),
        ("share >= '0.8'", "compares share and '0.8' as text"),
        ("greatest(share, timestamp) = 10", "compares share and timestamp as text"),
        ("timestamp > date'today'", "has a date that differs from day to day"),
        ("assert_true(share < 5) is null", "has an error that it raises"),
        ("event", "is no condition"),
        (
            "a.event = 'like'",
            "names a.event; fields of a record are not read; write `a.event` in backquotes if it is one column",
        ),
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


def test_where_keeps_other_conditions_from_rows_that_are_not_read(log: Log) -> None:
    """Neither text that is no number, nor a division by zero, nor a contradiction outside of where is a fault."""
    rows = [*TABLE, *[("u1", "i1", "ad", "n/a", TIMES[0])] * 300]
    log.write(rows, header=HEADER)
    where = {"where": "event != 'ad'"}
    found = read(log, source=where)
    assert (found.likes, found.counts["where"], found.counts["quarantined"]) == (LIKES, {"rows": 300}, {"rows": 0})
    found = read(log, source={"where": "try_cast(share as double) is not null"})
    assert (found.likes, found.counts["quarantined"]) == (LIKES, {"rows": 0})
    found = read(log, source={"where": "event != 'ad' and share > 0"}, feedback={"positive": "1 / share >= 2"})
    assert found.likes == sum(0 < share <= 0.5 for share in SHARES)


def test_a_text_column_may_be_a_number_in_one_condition_and_text_in_another(log: Log) -> None:
    log.write([(u, i, e, s if s > 0.2 else "none", t) for u, i, e, s, t in TABLE], header=HEADER)
    found = read(log, source={"where": "share <> 'none'"}, feedback={"positive": "share >= 0.7"})
    assert (found.likes, len(found.rows)) == (sum(s >= 0.7 for s in SHARES), sum(s > 0.2 for s in SHARES))


def test_whole_numbers_in_text_are_exact(log: Log) -> None:
    first = 1_234_567_890_123_456_780
    log.write(
        [(u, i, first + n, t) for n, (u, i, t) in enumerate(zip(USERS, ITEMS, TIMES, strict=True))],
        header="user,item,big,timestamp",
    )
    assert read(log, feedback={"positive": f"big = {first + 9}"}).likes == 1
    assert read(log, feedback={"positive": "big % 2 = 0"}).likes == 300


def test_rules_of_taking_back_that_no_row_meets_are_warned_of(log: Log) -> None:
    log.write(TABLE, header=HEADER)
    rules = {"positive": "event = 'like'", "undone": ["event = 'like'"], "undone_by": ["event = 'unlik'"]}
    found = read(log, feedback=rules)
    assert "no row meets feedback.undone_by \"event = 'unlik'\"" in found.warnings
    found = read(log, feedback=rules | {"undone_by": ["event = 'dislike'"]})
    dislikes = NAMED.count("dislike")
    assert found.counts["neither"] == {"rows": dislikes}, "what takes back is no dislike itself"


def test_a_log_whose_likes_are_all_taken_back_is_told(log: Log) -> None:
    log.write([row for u, i, _, s, t in TABLE for row in ((u, i, "like", s, t), (u, i, "unlike", s, t))], header=HEADER)
    rules = {"positive": "event = 'like'", "undone": ["event = 'like'"], "undone_by": ["event = 'unlike'"]}
    assert "all 600 likes and dislikes are taken back; check feedback.undone_by" in refused(log, feedback=rules)


def test_a_column_that_a_csv_file_has_twice_is_refused(log: Log) -> None:
    log.write(TABLE, header="user,item,event,event,timestamp")
    assert "feedback.positive names the column 'event', and there are 2" in refused(
        log, feedback={"positive": "event = 'like'"}
    )


def test_files_whose_numbers_are_out_of_order_are_told(log: Log) -> None:
    for number in (1, 2, 10):
        log.write([row[:3] for row in TABLE[:200]], f"day_{number}.csv", "user,item,event")
    source = {"timestamp": "none", "order": "rows"}
    found = read(log, source=source, feedback={"positive": "event = 'like'"})
    assert "the files are read in this order: day_1.csv, day_10.csv, day_2.csv" in found.warnings
