"""Writes the points of an evaluation with the histories before them, for another system to make lists from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.data.holdout_interactions import HoldoutInteractions
from pnfrec_dist.data.points import Points
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import how_to_add_points
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import replaced, writing
from pnfrec_dist.inference.list_evaluation import Protocol, protocol_of

CHUNK = 4096
"""Points written at once."""


def run(settings: EvaluateSettings) -> int:
    """Writes the file and says what is in it. Raises InputError for data without points, and for a file that cannot be
    written."""
    protocol = protocol_of(settings, "--write-points")
    lists, points = protocol.data.holdout_interactions(protocol.split), protocol.points
    if lists is None:
        directory = protocol.data.directory
        way_out = f"prepare it again: {how_to_add_points(directory.name)}"
        raise InputError(f"{directory} has last interactions only; {way_out}")
    if points is None:
        points = Points(lists, np.empty(0, np.int64), np.empty(0, np.int64), "signed")
    points = _with_last(points, lists)
    path = Path(settings.write_points)
    with writing(f"--write-points {path}", "name another file"), replaced(path) as draft:
        _write(draft, protocol, points)
    users = len(lists.items)
    print(f"{path}: {len(points):,} points of {users:,} {protocol.split} users, with the histories before them")
    return 0


def _with_last(points: Points, lists: HoldoutInteractions) -> Points:
    """The points, and each user's last interaction."""
    last_U = lists.items.lengths - 1
    keys = np.concatenate([points.user_P << 32 | points.place_P, np.arange(len(last_U)) << 32 | last_U])
    keys = np.unique(keys)
    return Points(lists, keys >> 32, keys & 0xFFFFFFFF, "signed")


def _write(path: Path, protocol: Protocol, points: Points) -> None:
    """Validation points have their targets, test points do not: nothing is chosen on test users."""
    user_ids, raw_ids = protocol.data.user_ids(protocol.split), protocol.data.raw_item_ids().cast(pa.string())
    writer = None
    for start in range(0, len(points), CHUNK):
        chosen = np.arange(start, min(start + CHUNK, len(points)))
        part = points.part(chosen)
        columns = {
            "user_id": user_ids.take(pa.array(points.user_P[chosen])),
            "point": pa.array(points.place_P[chosen].astype(np.int32)),
            "raw_item_ids": _lists(part.history, raw_ids.take(pa.array(np.abs(part.history.values) - 1))),
            "is_liked": _lists(part.history, pa.array(part.history.values > 0)),
            "seen_raw_item_ids": _lists(part.seen, raw_ids.take(pa.array(part.seen.values - 1))),
        }
        if protocol.split == "validation":
            columns["target_raw_item_id"] = raw_ids.take(pa.array(part.target_item - 1))
            columns["target_is_liked"] = pa.array(part.target_is_positive.astype(bool))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _lists(ragged: Ragged, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(ragged.offsets, pa.int32()), values)
