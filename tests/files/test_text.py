import math

import pytest

from pnfrec_dist.files.text import counted, duration, file_size, four, memory_size, score, signed, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (7.4, "7s"), (59.6, "1m00s"), (125, "2m05s"), (3599.7, "1h00m"), (3725, "1h02m"), (90_000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 MiB"), (3 << 20, "3 MiB"), ((1 << 30) - 1, "1024 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_in_memory(count: int, text: str) -> None:
    assert memory_size(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MB"), (1_234_567, "1.2 MB"), (1_234_567_890, "1,234.6 MB")])
def test_sizes_of_files(count: int, text: str) -> None:
    assert file_size(count) == text


@pytest.mark.parametrize(
    ("value", "plain", "printed", "difference"),
    [
        (0.09824, "0.0982", ".0982", "+.0982"),
        (-0.0174, "-0.0174", "-.0174", "-.0174"),
        (0.0, "0.0000", ".0000", "+.0000"),
        (1.0, "1.0000", "1.0000", "+1.0000"),
        (-12.5, "-12.5000", "-12.5000", "-12.5000"),
    ],
)
def test_four_digits(value: float, plain: str, printed: str, difference: str) -> None:
    assert (score(value), four(value), signed(value)) == (plain, printed, difference)


def test_what_is_not_there_and_what_rounds_to_zero() -> None:
    assert score(None) == "-" and score(math.nan) == "nan"
    assert four(-0.00001) == ".0000", "no minus before zero"


def test_numbers_of_things() -> None:
    assert [counted(n, "seed") for n in (0, 1, 5, 1234)] == ["0 seeds", "1 seed", "5 seeds", "1,234 seeds"]
    assert counted({5}, "seed") == "5 seeds" and counted({1}, "seed") == "1 seed"
    assert counted((n for n in (3, 2, 4)), "seed") == "2 to 4 seeds" and counted([0, 1], "seed") == "0 to 1 seed"
    assert span([7, 7]) == "7" and span([9, 7]) == "7 to 9"
