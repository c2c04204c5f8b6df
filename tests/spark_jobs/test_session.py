"""The size of the session. All other tests here show that it starts."""

import pytest

from spark_jobs.session import BYTES_PER_BATCH, ROWS_PER_BATCH, rows_per_batch


@pytest.mark.parametrize(("max_history", "rows"), [(1, ROWS_PER_BATCH), (200, 25_811), (10**9, 1)])
def test_a_batch_of_full_lists_stays_within_its_bytes(max_history: int, rows: int) -> None:
    assert rows_per_batch(max_history) == rows
    assert rows == 1 or rows * max_history * 13 <= BYTES_PER_BATCH
