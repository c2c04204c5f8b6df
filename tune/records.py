"""Records of a stage's trials: each has a directory, named after its point.

<stage>/<trial>/            a run, as `python -m pnfrec_dist.train` leaves it, without a test
<stage>/<trial>/trial.json  written once it ended; what lacks it goes on when the same command is started again
"""

import contextlib
import hashlib
import json
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
    """validation NDCG_p@10 of the best epoch; None of a trial that failed before its first epoch was over"""
    best_epoch: int | None
    epochs: list[dict[str, Any]]
    """{"epoch", "score", "seconds"} of each"""
    seconds: float
    """from the start of its workers to their end; of a trial that went on after an interruption, since then, and the
    epochs before"""

    @property
    def name(self) -> str:
        return trial_name(self.point)


def trial_name(point: Point) -> str:
    """The same for the same point."""
    return f"trial-{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:10]}"


def begin_record(directory: Path, point: Point) -> None:
    """Notes the point of a trial that is about to begin."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / POINT, point)


def write_record(directory: Path, record: Record) -> None:
    write_json(directory / TRIAL, asdict(record))


def read_record(directory: Path) -> Record | None:
    """None while the trial did not end. Raises InputError for a file that cannot be read."""
    content = _read(directory / TRIAL)
    with reading(directory / TRIAL, "remove it"):
        return None if content is None else Record(**content)


def ended_and_begun(stage_directory: Path) -> tuple[list[Record], list[Point]]:
    """The trials that ended, in the order of their ends, and the points of those that did not."""
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
    """Trials that failed go on as if they had been interrupted."""
    for record in ended_and_begun(stage_directory)[0]:
        if record.state == "failed":
            (stage_directory / record.name / TRIAL).unlink()


def best_of(records: list[Record]) -> Record | None:
    """Of the trials with a score that did not fail, the best; of equal ones that with the greater name, so that their
    order is no matter."""
    scored = [record for record in records if record.best_score is not None and record.state != "failed"]
    return max(scored, key=lambda record: (record.best_score, record.name), default=None)


def _read(file: Path) -> Any:
    with reading(file, "remove it"), contextlib.suppress(FileNotFoundError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None
