"""Ragged arrays, compared with lists of Python."""

import numpy as np
import pytest

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import PAD_ID

ROWS = [[3, 1, 4, 1], [], [5], [9, 2, 6]]


def test_rows_come_back() -> None:
    ragged = Ragged.of(ROWS, np.int32)
    assert len(ragged) == len(ROWS) and ragged.values.dtype == np.int32
    assert ragged.lengths.tolist() == [len(row) for row in ROWS]
    assert [ragged.row(number).tolist() for number in range(len(ROWS))] == ROWS
    assert len(Ragged.of([])) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 3], [1], []])
def test_the_newest_values_stand_left_and_padding_right(count: int, rows: list[int]) -> None:
    ids, lengths = Ragged.of(ROWS).newest(np.array(rows, dtype=np.int64), count)
    wanted = [ROWS[row][-count:] for row in rows]
    width = max([1, *map(len, wanted)])
    assert ids.tolist() == [row + [PAD_ID] * (width - len(row)) for row in wanted]
    assert ids.shape == (len(rows), width) and lengths.tolist() == [len(row) for row in wanted]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0, 3], [1], []])
def test_pairs_name_the_place_of_each_value(rows: list[int]) -> None:
    place, values = Ragged.of(ROWS, np.int32).pairs(np.array(rows, dtype=np.int64))
    wanted = [(at, value) for at, row in enumerate(rows) for value in ROWS[row]]
    assert list(zip(place.tolist(), values.tolist(), strict=True)) == wanted and values.dtype == np.int32
