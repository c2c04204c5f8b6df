"""Records of a stage's trials: each has a directory, named after its point.

<stage>/<trial>/            a run as `python -m pnfrec_dist.train` writes it, without a test
<stage>/<trial>/trial.json  written when the trial ends; without it, the same command resumes the trial
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pnfrec_dist.files.atomic import write_json
from pnfrec_dist.files.locations import reading
from tune.space import Point

TRIAL, POINT = "trial.json", "point.json"
State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Record:
    """A trial that ended."""

    point: Point
    state: State
    """finished: trained to its end; stopped: by the scheduler or the time budget; failed: see reason"""
    reason: str
    best_score: float | None
    """validation NDCG_p@10 of the best epoch; None if the trial failed in its first epoch"""
    best_epoch: int | None
    epochs: list[dict[str, Any]]
    """{"epoch", "score", "seconds"} of each"""
    seconds: float
    """from the start of its workers to their end; for a resumed trial: since it was resumed, plus the epochs before"""

    @property
    def name(self) -> str:
        return trial_name(self.point)


def trial_name(point: Point) -> str:
    """Equal points have equal names."""
    return f"trial-{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]}"


def begin_record(directory: Path, point: Point) -> None:
    """Writes down the point of a trial that is about to begin."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / POINT, point)


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / TRIAL, asdict(record))


def read_record(directory: Path) -> Record | None:
    """None for a trial that has not ended. Raises InputError for a file that cannot be read."""
    content = _read(directory / TRIAL)
    with reading(directory / TRIAL, "remove it"):
        return None if content is None else Record(**content)


def ended_and_begun(stage_directory: Path) -> tuple[list[Record], list[Point]]:
    """The trials that ended, in the order in which they ended, and the points of those that did not."""
    ended: list[tuple[float, Record]] = []
    begun: list[tuple[float, Point]] = []
    for file in sorted(stage_directory.glob(f"trial-*/{POINT}")):
        record = read_record(file.parent)
        if record is None:
            point = _read(file)
            if point is not None:
                begun.append((file.stat().st_mtime, point))
        else:
            ended.append(((file.parent / TRIAL).stat().st_mtime, record))
    ended.sort(key=lambda entry: entry[0])
    begun.sort(key=lambda entry: entry[0])
    return [record for _, record in ended], [point for _, point in begun]


def forget_failed(stage_directory: Path) -> None:
    """Lets failed trials be resumed, as if they had been interrupted."""
    for record in ended_and_begun(stage_directory)[0]:
        if record.state == "failed":
            (stage_directory / record.name / TRIAL).unlink()


def ranked(records: Iterable[Record]) -> list[Record]:
    """Best first; trials that failed or have no score last. Of equal scores, the smaller values come first.

    So the order of `records` does not matter, and every table and message has the same best trial.
    """

    def key(record: Record) -> tuple[bool, float, list[tuple[bool, Any]]]:
        values = [(isinstance(value, str), value) for _, value in sorted(record.point.items())]
        has_failed = record.state == "failed" or record.best_score is None
        return has_failed, -(record.best_score or 0.0), values

    return sorted(records, key=key)


def best_of(records: Iterable[Record]) -> Record | None:
    """The first of ranked(), if it has a score and did not fail."""
    best = next(iter(ranked(records)), None)
    return None if best is None or best.state == "failed" or best.best_score is None else best


def _read(file: Path) -> Any:
    with reading(file, "remove it"), contextlib.suppress(FileNotFoundError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None
