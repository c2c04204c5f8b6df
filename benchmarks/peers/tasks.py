"""What a peer is given: histories, evaluation points, and a process of its own whose memory is watched."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from benchmarks.peers.environments import ROOT, Environment
from benchmarks.peers.exchange import COVER, LISTS, RESULT, TEST, TRAIN, VALIDATION, Task
from benchmarks.watched import memory_of
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.points import Points, required_points
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.files.atomic import replaced

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
COVER_LENGTH = 51
"""Items of a user who only makes the catalog whole: a full window and its last target."""


def export(data: PreparedData, directory: Path) -> None:
    """Writes training likes, validation's liked points with targets, and test users and points without targets."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / TRAIN, {"items": data.train("positive").history})
    validation = _points(data, "validation")
    liked = validation.part(np.flatnonzero(validation.target_is_positive))
    _write(directory / VALIDATION, {"items": liked.history, "seen": liked.seen}, target=liked.target_item)
    points = _points(data, "test")
    parts = [data.holdout("test"), points.part(np.arange(len(points)))]
    history, seen = (joined([getattr(part, name) for part in parts]) for name in ("history", "seen"))
    _write(directory / TEST, {"items": history, "seen": seen})


def export_made(data: PreparedData, directory: Path) -> None:
    """Writes the training likes, and users who hold each item of the catalog once."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / TRAIN, {"items": data.train("positive").history})
    items = np.random.default_rng(0).permutation(data.num_items) + 1
    offsets = np.arange(-(-len(items) // COVER_LENGTH) + 1) * COVER_LENGTH
    _write(directory / COVER, {"items": Ragged(offsets, np.resize(items, offsets[-1]))})


def joined(parts: list[Ragged]) -> Ragged:
    """The rows of all parts, one after another."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part.values for part in parts]))


def _points(data: PreparedData, split: str) -> Points:
    return required_points(data, split, "positive", EvaluationSettings())


def _write(path: Path, lists: dict[str, Ragged], **columns: np.ndarray) -> None:
    arrays = {
        name: pa.ListArray.from_arrays(pa.array(one.offsets, pa.int32()), pa.array(np.asarray(one.values), pa.int32()))
        for name, one in lists.items()
    }
    with replaced(path) as draft:
        pq.write_table(pa.table({**arrays, **{name: pa.array(values) for name, values in columns.items()}}), draft)


def run(peer: str, environment: Environment, task: Task, limit_gb: float) -> dict[str, Any]:
    """Runs a task in the peer's environment and returns its result, with "peak_gb". A finished task is not run again.

    limit_gb: the process is ended when it has more memory. The result then has "problem" alone.
    """
    out = Path(task.out)
    kept = out / "finished.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
    line = [environment.python, "-m", f"benchmarks.peers.{peer}_peer", out / "task.json"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(task.threads)}
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=variables, cwd=out)
        peak_gb, is_over = _watched(process, limit_gb)
    if is_over:
        found = {"problem": f"more than {limit_gb:.0f} GB of memory"}
    elif process.returncode:
        end = (out / "log.txt").read_text(encoding="utf-8", errors="replace").strip()[-300:]
        found = {"problem": f"exit {process.returncode}: {end}"}
    else:
        found = json.loads((out / RESULT).read_text(encoding="utf-8")) | {"peak_gb": peak_gb}
    print(f"{peer} {task.recipe}, {out.name}: {found.get('problem') or 'done'}", flush=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _watched(process: subprocess.Popen[bytes], limit_gb: float) -> tuple[float, bool]:
    """Waits. (peak memory in GB, whether the process was ended because it had more than limit_gb)."""
    peak_gb = 0.0
    while True:
        try:
            process.wait(timeout=0.2)
            return peak_gb, False
        except subprocess.TimeoutExpired:
            peak_gb = max(peak_gb, memory_of(process.pid) / 1e9)
            if peak_gb > limit_gb:
                process.kill()
                process.wait()
                return peak_gb, True


def write_lists(data: PreparedData, task: Task, path: Path) -> None:
    """A task's lists as evaluate --lists reads them: first those of the last interactions, then those of points."""
    points, user_ids = _points(data, "test"), data.user_ids("test")
    user = np.concatenate([np.arange(len(user_ids)), points.user_P])
    point = pa.array(np.concatenate([np.full(len(user_ids), -1), points.place_P]))
    lists = pq.read_table(Path(task.out) / LISTS)
    row_R = pa.array(lists["row"].to_numpy())
    of_row = point.take(row_R)
    columns = {
        "user_id": user_ids.take(pa.array(user).take(row_R)),
        "point": pc.if_else(pc.less(of_row, 0), pa.scalar(None, pa.int64()), of_row),
        "rank": lists["rank"],
        "raw_item_id": data.raw_item_ids().take(pa.array(lists["item"].to_numpy() - 1)),
    }
    pq.write_table(pa.table(columns), path)
