import numpy as np
import pyarrow as pa
import pytest

from pnfrec_dist.data.raw_ids import places


@pytest.mark.parametrize("as_array", [list, pa.array])
def test_places_of_ids_as_lists_and_arrays(as_array: type) -> None:
    found = places(as_array(["b", "x", "a", "b"]), as_array(["a", "b", "c"]))
    assert found.tolist() == [1, -1, 0, 1] and found.dtype == np.int64


def test_no_id_is_in_an_empty_list() -> None:
    assert places(["a"], []).tolist() == [-1]
    assert places([], ["a"]).tolist() == []
