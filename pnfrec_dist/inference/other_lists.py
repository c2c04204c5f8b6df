"""Lists of another system: the rows of its files, and their items in order for holdout users or for points.

R rows of the lists.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.data.prepared import HoldoutData, PreparedData
from pnfrec_dist.data.raw_ids import places
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.holdout import Ranked
from pnfrec_dist.files.locations import Location, reading
from pnfrec_dist.files.text import counted

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
COLUMNS = ("user_id", "rank", "raw_item_id")
POINT = "point"
"""An optional column: the place of the target among the user's interactions from T on, from 0. A row without it is of a
list for the user's last interaction."""
CHUNK = 4096
"""Points whose seen items are made at once."""


@dataclass(frozen=True)
class ListRows:
    """Rows of the files that name a user of the split and an item of the catalog."""

    user_R: np.ndarray
    """row of the split"""
    item_R: np.ndarray
    rank_R: np.ndarray
    point_R: np.ndarray
    """-1 for lists for the last interaction"""
    left_out: dict[str, int]
    """reason -> rows that are not here"""


@dataclass(frozen=True)
class Lists:
    """What is left of the rows for the ranked users or points, in the order of these and of ranks."""

    target_R: np.ndarray
    """number of the user or point among the ranked"""
    item_R: np.ndarray
    left_out: dict[str, int]
    num_equal: int
    """rows with the rank of the item before them; of equal ranks, the smaller item id is first"""
    num_seen_targets: int
    """users or points whose target is an item that the user has seen before"""


def read_rows(path: Path, data: PreparedData, split: str) -> ListRows:
    """Raises InputError for files without the columns, and if no row names a user of the split and an item."""
    if not path.exists():
        raise InputError(f"--lists {path} does not exist; name a Parquet file of lists, or a directory of such files")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"--lists {path} holds no *.parquet file; name a file, or a directory of such files")
    with reading(Location(path), "name a Parquet file of lists"):
        tables = [_columns_of(file) for file in files]
        table = pa.concat_tables(tables, promote_options="permissive")
    if not len(table):
        raise InputError(f"--lists {path} holds no row; a list has one row for each of its items")
    user_ids, raw_ids = data.user_ids(split), data.raw_item_ids()
    user, item = places(_texts(table["user_id"]), user_ids), places(_texts(table["raw_item_id"]), raw_ids)
    kept = (user >= 0) & (item >= 0)
    if not kept.any():
        first = f"{table['user_id'][0].as_py()!r} and {table['raw_item_id'][0].as_py()!r}"
        raise InputError(
            f"no row of {path} names a {split} user and an item of {data.directory}; the first has {first}, "
            f"the data set has {split} users (--split) such as {user_ids[0].as_py()!r} and items such as "
            f"{raw_ids[0].as_py()!r}"
        )
    left_out = {
        f"users who are no {split} users": int((user < 0).sum()),
        "items that are not in the catalog": int(((user >= 0) & (item < 0)).sum()),
    }
    point_R = pc.fill_null(table[POINT], -1).to_numpy()[kept]
    return ListRows(user[kept], item[kept] + 1, table["rank"].to_numpy()[kept], point_R, left_out)


def _columns_of(file: Path) -> pa.Table:
    """The columns of one file; `point` is null for last interactions, and throughout if the file lacks it. Raises
    InputError if one is missing or has values that it cannot have."""
    schema = pq.read_schema(file)
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise InputError(f"{file} has no column {missing[0]!r}; lists need {', '.join(COLUMNS)}")
    for name in ("user_id", "raw_item_id"):
        if pa.types.is_nested(schema.field(name).type):
            kind = schema.field(name).type
            raise InputError(f"the column {name!r} of {file} is {kind}; write one row for each item of a list")
    table = pq.read_table(file, columns=[*COLUMNS, POINT] if POINT in schema.names else list(COLUMNS))
    rank = table["rank"].combine_chunks()
    if not (pa.types.is_integer(rank.type) or pa.types.is_floating(rank.type)):
        raise InputError(f"the column 'rank' of {file} is {rank.type}; it must be a number, 1 for the first item")
    without = rank.null_count + int(np.isnan(pc.drop_null(rank).to_numpy(zero_copy_only=False).astype(float)).sum())
    if without:
        raise InputError(f"{file}: {counted(without, 'row')} without a rank; give each item a rank, 1 for the first")
    if len(rank) and (lowest := pc.min(rank).as_py()) < 0:
        raise InputError(f"the column 'rank' of {file} has {lowest:g}; ranks are 1 for the first item, 2, and so on")
    point = table[POINT] if POINT in table.column_names else pa.chunked_array([pa.nulls(len(table), pa.int64())])
    return pa.table({**{name: table[name] for name in COLUMNS}, POINT: _points(point.combine_chunks(), file)})


def _points(point: pa.Array, file: Path) -> pa.Array:
    """As int64. pandas has a column with empty values as floats."""
    told = f"the column 'point' of {file} must be whole numbers, as in --write-points"
    if pa.types.is_floating(point.type):
        point = pc.if_else(pc.is_nan(point), None, point)
    elif not (pa.types.is_integer(point.type) or pa.types.is_null(point.type)):
        raise InputError(f"{told}; it is {point.type}")
    try:
        found = pc.cast(point, pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(f"{told}; {error}") from error
    lowest = pc.min(found).as_py()
    if lowest is not None and lowest < 0:
        raise InputError(f"the column 'point' of {file} has {lowest}; points count from 0, last interactions are empty")
    return found


def lists_of(rows: ListRows, target_R: np.ndarray, ranked: Ranked) -> Lists:
    """The lists of `ranked`, without items that were seen before the target, and without repetitions.

    target_R: number of each row's user or point among the ranked; -1 for rows of others, which are left out silently.
    """
    chosen = target_R >= 0
    target_R, item_R, rank_R = target_R[chosen], rows.item_R[chosen], rows.rank_R[chosen]
    order = np.lexsort((item_R, rank_R, target_R))
    target_R, item_R, rank_R = target_R[order], item_R[order], rank_R[order]
    keys_R = target_R << 32 | item_R
    is_seen_R, num_seen_targets = _seen(keys_R, ranked)
    is_first_R = np.zeros(len(keys_R), dtype=bool)
    is_first_R[np.unique(keys_R, return_index=True)[1]] = True
    left_out = {
        "items that the user has already seen": int(is_seen_R.sum()),
        "items that stand twice in a list": int((~is_first_R & ~is_seen_R).sum()),
    }
    taken = is_first_R & ~is_seen_R
    target_R, rank_R = target_R[taken], rank_R[taken]
    is_equal_R = (target_R[1:] == target_R[:-1]) & (rank_R[1:] == rank_R[:-1])
    return Lists(target_R, item_R[taken], left_out, int(is_equal_R.sum()), num_seen_targets)


def _seen(keys_R: np.ndarray, ranked: Ranked) -> tuple[np.ndarray, int]:
    """Whether each row, target << 32 | item in the order of targets, is a seen item that is not the target; and the
    number of targets that are seen items."""
    is_seen_R, num_seen_targets = np.zeros(len(keys_R), dtype=bool), 0
    for start in range(0, len(ranked), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, len(ranked)))
        part: HoldoutData = ranked.part(numbers)
        number, items = part.seen.pairs(np.arange(len(part)))
        seen = (number + start) << 32 | items.astype(np.int64)
        rows = slice(*np.searchsorted(keys_R >> 32, [start, numbers[-1] + 1]))
        targets = numbers << 32 | part.target_item.astype(np.int64)
        others = np.setdiff1d(seen, targets, assume_unique=True)
        is_seen_R[rows] = np.isin(keys_R[rows], others)
        num_seen_targets += len(seen) - len(others)
    return is_seen_R, num_seen_targets


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Ids as text."""
    return pc.cast(column, pa.string()).combine_chunks()
