"""The texts of errors: one line, with the nearest known name."""

import re
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError, first_line, nearest, one_line, require

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "line", "with_class"),
    [
        (ValueError("it broke"), "it broke", "ValueError: it broke"),
        (ValueError("\n it broke.\nat line 3"), "it broke", "ValueError: it broke"),
        (OSError(28, "No space left"), "[Errno 28] No space left", "OSError: [Errno 28] No space left"),
        (KeyError("a"), "'a'", "KeyError: 'a'"),
        (TimeoutError(), "TimeoutError", "TimeoutError"),
        (TimeoutError(" \n"), "TimeoutError", "TimeoutError"),
    ],
)
def test_an_error_is_its_first_line_to_which_more_can_be_added(error: Exception, line: str, with_class: str) -> None:
    assert first_line(error) == line
    assert first_line(error, with_class=True) == with_class


def test_no_other_module_takes_the_first_line_of_an_error() -> None:
    by_hand = re.compile(r"str\(error\)[^\n]*splitlines")
    places = [path for package in ("pnfrec_dist", "spark_jobs", "tune") for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in places if by_hand.search(path.read_text(encoding="utf-8"))] == []


def test_a_text_of_several_lines_becomes_one_without_what_follows_dashes() -> None:
    assert one_line("wrong\n   value.\n-----\nUsage: ...") == "wrong value"


def test_a_wrong_value_is_named_with_the_rule() -> None:
    require(True, "--epochs", 1, "at least 1")
    with pytest.raises(InputError, match=r"^--epochs is 0; it must be at least 1$"):
        require(False, "--epochs", 0, "at least 1")
    for value, shown in (("a", "'a'"), ((-1.0, 2), "-1.0, 2"), ((), "empty")):
        with pytest.raises(InputError, match=f"^--gammas is {shown}; it must be small$"):
            require(False, "--gammas", value, "small")


def test_the_nearest_name_is_asked_for_whatever_its_case_or_all_are_listed() -> None:
    assert nearest("PNFRec", ["pnfrec", "sasrec_p"]) == "did you mean 'pnfrec'?"
    assert nearest("x", ["b", "a"]) == "known: a, b"
