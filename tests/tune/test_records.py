"""Records of trials: written when a trial ends, read by the next command."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from tune.records import (
    TRIAL,
    Record,
    begin_record,
    best_of,
    ended_and_begun,
    forget_failed,
    read_record,
    trial_name,
    write_record,
)

ENDED = Record({"optimizer.lr": 0.1}, "finished", "", 0.5, 2, [{"epoch": 1, "score": 0.5, "seconds": 1.0}], 3.0)


def write(stage: Path, *records: Record) -> None:
    """Writes records of trials that ended in this order."""
    for number, record in enumerate(records):
        begin_record(stage / record.name, record.point)
        write_record(stage / record.name, record)
        os.utime(stage / record.name / TRIAL, (number, number))


def of(lr: float, **changes: object) -> Record:
    return replace(ENDED, point={"optimizer.lr": lr}, **changes)


def test_equal_points_have_equal_names_whatever_the_order_of_their_settings() -> None:
    assert trial_name({"a": 1, "b": 2}) == trial_name({"b": 2, "a": 1}) != trial_name({"a": 1, "b": 3})


def test_what_was_written_is_read_and_what_has_not_ended_is_begun(tmp_path: Path) -> None:
    records = [of(0.3), of(0.1, state="failed", reason="no memory", best_score=None), of(0.2)]
    write(tmp_path, *records)
    begin_record(tmp_path / trial_name({"optimizer.lr": 9.0}), {"optimizer.lr": 9.0})
    assert read_record(tmp_path / records[1].name) == records[1]
    assert read_record(tmp_path / "trial-none") is None
    assert ended_and_begun(tmp_path) == (records, [{"optimizer.lr": 9.0}])


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content in ("{", '{"point": {}}'):
        (tmp_path / TRIAL).write_text(content)
        with pytest.raises(InputError, match=rf"{TRIAL} cannot be read \(.*\); remove it$"):
            read_record(tmp_path)


def test_failed_trials_are_begun_again_where_asked(tmp_path: Path) -> None:
    write(tmp_path, of(0.1, state="failed"), of(0.2, state="stopped"))
    forget_failed(tmp_path)
    assert ended_and_begun(tmp_path) == ([of(0.2, state="stopped")], [{"optimizer.lr": 0.1}])


def test_the_best_has_a_score_and_did_not_fail() -> None:
    records = [of(0.1, best_score=0.2), of(0.2, best_score=0.4), of(0.3, best_score=0.9, state="failed")]
    assert best_of([*records, of(0.4, best_score=None)]) == records[1]
    assert best_of([]) is None
    equal = [of(0.5), of(0.6)]
    assert best_of(equal) == best_of(equal[::-1]) == of(0.5)
