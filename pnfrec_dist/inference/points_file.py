"""Writes the points of an evaluation with the histories before them, for another system to make lists from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.data.points import Points
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.evaluation.holdout import Ranked
from pnfrec_dist.files.atomic import replaced, writing
from pnfrec_dist.inference.list_evaluation import Protocol, protocol_of

CHUNK = 4096
"""Points written at once."""


def run(settings: EvaluateSettings) -> int:
    """Writes the file and says what is in it. Raises InputError for data without points, and for a file that cannot be
    written."""
    protocol = protocol_of(settings, "--write-points")
    data, split, points = protocol.data, protocol.split, protocol.points()
    users = data.holdout(split, "signed")
    read: list[tuple[Ranked, Ranked]] = [
        (users, data.holdout(split, "positive")),
        (points, replace(points, history="positive")),
    ]
    path = Path(settings.write_points)
    with writing(f"--write-points {path}", "name another file"), replaced(path) as draft:
        _write(draft, protocol, read)
    what = f"{len(users):,} last interactions and {len(points):,} points of {len(users):,} {split} users"
    print(f"{path}: {what}, with the histories before them")
    return 0


def _write(path: Path, protocol: Protocol, read: list[tuple[Ranked, Ranked]]) -> None:
    """Rows of last interactions, then rows of points. read: each with all of its history, and with the likes alone."""
    writer = None
    for ranked, liked in read:
        for start in range(0, len(ranked), CHUNK):
            chosen = np.arange(start, min(start + CHUNK, len(ranked)))
            table = _table(protocol, ranked, liked.part(chosen).history, chosen)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    if writer is not None:
        writer.close()


def _table(protocol: Protocol, ranked: Ranked, likes: Ragged, chosen: np.ndarray) -> pa.Table:
    """Rows of validation have their targets, rows of test do not: nothing is chosen on test users."""
    user_ids, raw_ids = protocol.data.user_ids(protocol.split), protocol.data.raw_item_ids().cast(pa.string())
    part = ranked.part(chosen)
    of_points = isinstance(ranked, Points)
    columns = {
        "user_id": user_ids.take(pa.array(ranked.user_P[chosen] if of_points else chosen)),
        "point": pa.array(ranked.place_P[chosen], pa.int32()) if of_points else pa.nulls(len(chosen), pa.int32()),
        "raw_item_ids": _lists(part.history, raw_ids.take(pa.array(np.abs(part.history.values) - 1))),
        "is_liked": _lists(part.history, pa.array(part.history.values > 0)),
        "liked_raw_item_ids": _lists(likes, raw_ids.take(pa.array(likes.values - 1))),
        "seen_raw_item_ids": _lists(part.seen, raw_ids.take(pa.array(part.seen.values - 1))),
    }
    if protocol.split == "validation":
        columns["target_raw_item_id"] = raw_ids.take(pa.array(part.target_item - 1))
        columns["target_is_liked"] = pa.array(part.target_is_positive.astype(bool))
    return pa.table(columns)


def _lists(ragged: Ragged, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(ragged.offsets, pa.int32()), values)
