"""A complete prepared data set of ML-1M's shape with any number of users, written without Spark."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shapes import ITEMS, ml1m_like
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.schema import (
    HOLDOUT_SCHEMA,
    ITEMS_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    TRAIN_SCHEMA,
    USERS_SCHEMA,
    FileEntry,
    Manifest,
    settings_hash,
    write_manifest,
)
from pnfrec_dist.files.locations import sha256_of

TRAIN_USERS, HOLDOUT_USERS, GROUP = 1_000, 50, 1_000
"""GROUP: users of a row group, which is a part of the lists."""


def write_prepared_like(
    directory: Path,
    users: int,
    items: int = ITEMS,
    group: int = GROUP,
    train_users: int = TRAIN_USERS,
    data: TrainData | None = None,
) -> Path:
    """Only the first `train_users` users are in train. data: their lists; None: of ML-1M's shape."""
    max_history = 200
    data = ml1m_like(users, items) if data is None else data
    assert data.negative is not None
    rows = []
    for user in range(users):
        positive, negative = (
            side.values[side.offsets[user] : side.offsets[user + 1]] for side in (data.history, data.negative)
        )
        likes, dislikes = positive[-max_history:].tolist(), negative[-max_history:].tolist()
        both = [*dislikes, *likes][-max_history:]
        flags = [False] * max(len(both) - len(likes), 0) + [True] * min(len(likes), len(both))
        rows.append(
            {
                "user_id": f"user {user}",
                "items": both,
                "is_positive": flags,
                "positive_items": likes,
                "negative_items": dislikes,
                "seen_items": np.unique(np.concatenate([positive, negative])).tolist(),
                "num_holdout": 0,
            }
        )
    target = {"target_item": 1, "target_is_positive": True, "target_timestamp": 9}
    target |= {"holdout_items": [1], "holdout_is_positive": [True], "holdout_timestamps": [9]}
    lists = ("items", "is_positive", "positive_items", "negative_items", "seen_items")
    holdout = [{**row, **target, **{f"before_{n}": row[n] for n in lists}} for row in rows[:HOLDOUT_USERS]]
    catalog = [{"item_id": i, "raw_item_id": str(i), "num_positive": 1, "num_negative": 1} for i in range(1, items + 1)]
    tables = {
        "train/part-00000.parquet": (rows[:train_users], TRAIN_SCHEMA),
        "validation/part-00000.parquet": (holdout, HOLDOUT_SCHEMA),
        "test/part-00000.parquet": (holdout, HOLDOUT_SCHEMA),
        "users/part-00000.parquet": (rows, USERS_SCHEMA),
        "quarantine/part-00000.parquet": ([], QUARANTINE_SCHEMA),
        "items.parquet": (catalog, ITEMS_SCHEMA),
    }
    entries = []
    for name, (content, schema) in tables.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(content, schema=schema), path, row_group_size=group)
        entries.append(FileEntry(name, path.stat().st_size, sha256_of(path), len(content)))
    settings = {"max_history": max_history}
    counts = {"train": {"items": items, "rows": 2 * items}, "users": {"users": users}}
    manifest = Manifest(SCHEMA_VERSION, "like", settings, settings_hash(settings), [], counts, 4.0, 5, "s", entries)
    write_manifest(directory, manifest)
    return directory
