"""Every user's whole history, read part by part, so that users/ is never in memory as a whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.data.prepared import PreparedData, ragged
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import USERS, require_content
from pnfrec_dist.files.locations import Location

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
LISTS = ("items", "is_positive", "positive_items", "negative_items", "seen_items")


@dataclass(frozen=True)
class UserPart:
    """Users of a prepared data set that are read together: a row group of a file."""

    number: int
    """0, 1, ... over the data set"""
    file: Location
    group: int
    rows: int
    sha256: str
    """of the file"""


@dataclass(frozen=True)
class UserLists:
    """Lists of some users, oldest interaction first."""

    user_ids: pa.Array
    items: Ragged
    is_positive: Ragged
    """for each of `items`"""
    positive: Ragged
    negative: Ragged
    seen: Ragged
    """all seen items, ascending"""
    num_holdout: np.ndarray
    """how many of `items` (the newest ones) are at or after T"""

    def __len__(self) -> int:
        return len(self.user_ids)


def user_parts(data: PreparedData) -> list[UserPart]:
    """All parts of a data set, in order."""
    parts: list[UserPart] = []
    for entry in data.require_whole(USERS).manifest.files_of(USERS):
        file = data.directory / entry.path
        with file.open() as content:
            metadata = pq.ParquetFile(content).metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            parts.append(UserPart(len(parts), file, group, rows, entry.sha256))
    return parts


def user_ids(part: UserPart) -> pa.Array:
    """Raw ids of a part's users, in its order."""
    return _column(_read(part, ["user_id"]), "user_id")


def read_users(
    part: UserPart, num_items: int, only: pa.Array | None = None, columns: Sequence[str] = LISTS
) -> UserLists:
    """A part's users, or those of them whose raw id is in `only`. Lists that are not in `columns` are empty."""
    table = _read(part, ["user_id", *columns, "num_holdout"])
    if only is not None:
        table = table.filter(pc.is_in(table["user_id"], only))
    found = {name: ragged(_column(table, name), num_items, f"{part.file}: {name}") for name in columns}
    empty = Ragged(np.zeros(len(table) + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    items, is_positive, positive, negative, seen = (found.get(name, empty) for name in LISTS)
    num_holdout = table["num_holdout"].to_numpy()
    return UserLists(_column(table, "user_id"), items, is_positive, positive, negative, seen, num_holdout)


def find_users(data: PreparedData, wanted: pa.Array) -> Iterator[UserLists]:
    """The users whose raw id is in `wanted`, part by part; parts without one are skipped."""
    for part in user_parts(data):
        if pc.any(pc.is_in(user_ids(part), wanted)).as_py():
            yield read_users(part, data.num_items, wanted)


def _read(part: UserPart, columns: list[str]) -> pa.Table:
    """Raises InputError for a file that does not match the manifest; the machine that reads it checks it."""
    require_content(part.file, part.sha256, part.file.parent.parent)
    with part.file.open() as content:
        return pq.ParquetFile(content).read_row_group(part.group, columns)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
