"""Events: what a training tells while it runs, as dataclasses of plain values.

Rank 0 alone tells them, but for warnings and what a worker says of itself. Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WorkerStarted:
    """A worker's process runs; from every rank."""

    rank: int
    size: int
    """workers in all"""
    node: str
    """Ray's id of its machine"""
    pid: int


@dataclass(frozen=True)
class Alive:
    """Work goes on where no step is told of for long, as in an evaluation."""


@dataclass(frozen=True)
class WorkersFailed:
    """Workers are lost and are started again."""

    reasons: dict[int, str]
    """rank -> why, in a line"""


@dataclass(frozen=True)
class Warned:
    """Something went wrong that does not end the run."""

    text: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch was trained and validated."""

    epoch: int
    """from 1"""
    metrics: dict[str, float]
    """train/... and val/..."""
    seconds: float
    """of training, without validation"""
    is_best: bool
    """so far, on validation users"""


@dataclass(frozen=True)
class Earlier:
    """Epochs before the checkpoint gone on from; some may never have been told of."""

    epochs: Sequence[EpochDone]


@dataclass(frozen=True)
class Started:
    """The loop begins, after `step` steps of `epoch`."""

    epoch: int
    step: int
    workers: int


@dataclass(frozen=True)
class StepDone:
    """A step of an epoch was trained."""

    epoch: int
    step: int
    """from 1"""
    steps: int
    """of the epoch"""
    loss: float
    """mean over the epoch's steps so far"""
    users_per_s: float


@dataclass(frozen=True)
class Stopped:
    """The loop ends after `step` steps of `epoch`, as it was asked to, with a checkpoint."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Diverged:
    """The loop ends, as a step was not finite."""

    epoch: int
    step: int
    """from 1"""
    skipped: int
    """steps in a row that were not finite, this one included"""
    batch: str
    """file of its users"""


@dataclass(frozen=True)
class Trained:
    """Training came to its end."""

    best_epoch: int
    checkpoint: str
    """directory of the best epoch's"""


@dataclass(frozen=True)
class BestTested:
    """The best epoch was evaluated on test users."""

    metrics: dict[str, float]
    floors: dict[str, dict[str, float]]
    """what asks for no model -> its metrics"""
    best_epoch: int
    checkpoint: str
    """directory of the best epoch's"""


@dataclass(frozen=True)
class Refused:
    """The workers cannot do what they were told; starting them again would not help."""

    text: str


Event = (
    WorkerStarted
    | Alive
    | WorkersFailed
    | Warned
    | EpochDone
    | Earlier
    | Started
    | StepDone
    | Stopped
    | Diverged
    | Trained
    | BestTested
    | Refused
)


def epochs_of(event: Event) -> Sequence[EpochDone]:
    """The epochs that an event tells of."""
    if isinstance(event, EpochDone):
        return [event]
    return event.epochs if isinstance(event, Earlier) else []


def stored_epoch(stored: Mapping[str, Any]) -> EpochDone:
    """An epoch as a file holds it; files of earlier versions hold more."""
    return EpochDone(stored["epoch"], stored["metrics"], stored["seconds"], stored["is_best"])
