"""Events that a training reports while it runs, as dataclasses of plain values.

Only rank 0 reports them, except for warnings and WorkerStarted. Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WorkerStarted:
    """A worker's process has started; reported by every rank."""

    rank: int
    size: int
    """workers in all"""
    node: str
    """Ray's id of its machine"""
    pid: int


@dataclass(frozen=True)
class Alive:
    """Work goes on while no step is reported: an evaluation."""

    share: float
    """of its users that are done, in [0, 1]"""


@dataclass(frozen=True)
class WorkersFailed:
    """Workers have failed and are started again."""

    reasons: dict[int, str]
    """rank -> reason, in one line"""


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
    """whether it is the best so far, on validation users"""


@dataclass(frozen=True)
class Earlier:
    """Epochs before the checkpoint from which the run resumes; some may not have been reported before."""

    epochs: Sequence[EpochDone]


@dataclass(frozen=True)
class Started:
    """The loop starts, after `step` steps of `epoch`."""

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
    """The loop ends on request after `step` steps of `epoch`, with a checkpoint."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Diverged:
    """The loop ends because a step was not finite."""

    epoch: int
    step: int
    """from 1"""
    skipped: int
    """steps in a row that were not finite, including this one"""
    batch: str
    """file with the users of the step"""


@dataclass(frozen=True)
class Trained:
    """Training is complete."""

    best_epoch: int
    checkpoint: str
    """directory of the best epoch's"""


@dataclass(frozen=True)
class BestTested:
    """The best epoch was evaluated on test users."""

    metrics: dict[str, float]
    floors: dict[str, dict[str, float]]
    """baseline -> its metrics"""
    best_epoch: int
    checkpoint: str
    """directory of the best epoch's"""
    weights: dict[str, float] = field(default_factory=dict)
    """weights of the scores that validation has chosen: likes_share, gamma"""


@dataclass(frozen=True)
class Refused:
    """The workers cannot run these settings; starting them again would not help."""

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
    """The epochs in an event."""
    if isinstance(event, EpochDone):
        return [event]
    return event.epochs if isinstance(event, Earlier) else []


def stored_epoch(stored: Mapping[str, Any]) -> EpochDone:
    """An epoch from its stored form; files of earlier versions have more keys."""
    return EpochDone(stored["epoch"], stored["metrics"], stored["seconds"], stored["is_best"])
