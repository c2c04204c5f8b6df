"""Finds raw ids among others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees


def places(raw_ids: pa.Array | Sequence[str], among: pa.Array | Sequence[str]) -> np.ndarray:
    """The place of each id in `among`, [len(raw_ids)]; -1 if it is not there."""
    found = pc.index_in(_array(raw_ids), value_set=_array(among))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _array(ids: pa.Array | Sequence[str]) -> pa.Array:
    return ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
