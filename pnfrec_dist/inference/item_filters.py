"""Filters of the lists: files of user ids, item ids, and pairs of both, checked before any list is made."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.user_histories import UserPart, user_ids, user_parts
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import reading
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.list_maker import Filters

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
NAMED = 3
"""Most unknown ids that a message names."""


def read_ids(path: str, flag: str) -> pa.Array:
    """The distinct ids of a text file, one per line. Raises InputError for a file without ids."""
    with reading(f"{flag} {path}", "give a text file with one raw id per line"):
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise InputError(f"{flag} {path} is empty; give one raw id per line")
    return pa.array(ids, pa.string())


def parts_with(data: PreparedData, wanted: pa.Array | None) -> list[UserPart]:
    """The parts with wanted users (None: all); `rows` of a part is the number of them.

    Raises InputError for users that are not in the data set.
    """
    parts = user_parts(data)
    if wanted is None:
        return parts
    held, found = [], [pa.array([], pa.string())]
    for part in parts:
        ids = user_ids(part)
        here = ids.filter(pc.is_in(ids, wanted))
        if len(here):
            held.append(dataclasses.replace(part, rows=len(here)))
            found.append(here)
    unknown = _outside(wanted, pa.concat_arrays(found))
    if unknown:
        raise InputError(f"--users: {data.directory} lacks {_named(unknown)} of {len(wanted):,} users; remove them")
    return held


def read_filters(trained: Exported, allow: str, deny: str, deny_pairs: str) -> Filters:
    """Raises InputError for files that cannot be read, and if --allow has no item of the model."""
    raw_ids = pa.array(trained.raw_ids, pa.string())
    is_hidden_V = np.zeros(len(raw_ids) + 1, dtype=bool)
    if allow:
        is_allowed = _among(raw_ids, allow, "--allow")
        if not is_allowed.any():
            raise InputError(f"--allow {allow} has no item that the model knows; give raw item ids, one per line")
        is_hidden_V[1:] = ~is_allowed
    if deny:
        is_hidden_V[1:] |= _among(raw_ids, deny, "--deny")
    if deny_pairs:
        _require_pairs(deny_pairs)
    return Filters(is_hidden_V if is_hidden_V.any() else None, str(Path(deny_pairs).resolve()) if deny_pairs else "")


def _require_pairs(path: str) -> None:
    try:
        columns = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"--deny-pairs {path} is not a Parquet file ({error})") from error
    for name in ("user_id", "raw_item_id"):
        if name not in columns.names or columns.field(name).type not in (pa.string(), pa.large_string()):
            raise InputError(f"--deny-pairs {path} has no text column {name!r}; it must hold user_id and raw_item_id")


def _among(raw_ids: pa.Array, path: str, flag: str) -> np.ndarray:
    """Which of the model's items are in a file; prints a warning about items that the model does not know."""
    given = read_ids(path, flag)
    if unknown := _outside(given, raw_ids):
        print(f"warning: {flag}: the model does not know {_named(unknown)} of {len(given):,} items", flush=True)
    return pc.is_in(raw_ids, given).to_numpy(zero_copy_only=False)


def _outside(ids: pa.Array, known: pa.Array) -> list[str]:
    return ids.filter(pc.invert(pc.is_in(ids, known))).to_pylist()


def _named(ids: list[str]) -> str:
    """2 (a, b), or 7 (a, b, c, ...)."""
    return f"{len(ids):,} ({', '.join(ids[:NAMED])}{', ...' if len(ids) > NAMED else ''})"
