"""What a run knows besides tensors: where it is, and what was best."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pnfrec_dist.losses.objective import TERMS


@dataclass
class TrainState:
    """Position and early stopping of a run; plain values, so that it is JSON in a checkpoint.

    epoch: the epoch in progress, counted from 1; step: steps done in it. The sums cover those steps, over all ranks,
    without those that were skipped because they were not finite.
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    """steps done in all epochs"""
    best_score: float = -1.0
    best_epoch: int = 0
    best_steps: int = 0
    """total_steps at the end of the best epoch, which names its checkpoint"""
    skipped: int = 0
    """of this epoch's steps"""
    skipped_in_a_row: int = 0
    loss_totals: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))
    loss_counts: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))
    seconds: float = 0.0

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def epochs_without_improvement(self) -> int:
        """Epochs finished since the best one."""
        return self.epoch - 1 - self.best_epoch

    def count_step(self, totals: list[float], counts: list[float]) -> None:
        """A step whose sums over all ranks are finite."""
        self.skipped_in_a_row = 0
        self._move_on(totals, counts)

    def skip_step(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._move_on([0.0] * len(TERMS), [0.0] * len(TERMS))

    def _move_on(self, totals: list[float], counts: list[float]) -> None:
        self.step += 1
        self.total_steps += 1
        self.loss_totals = [a + b for a, b in zip(self.loss_totals, totals, strict=True)]
        self.loss_counts = [a + b for a, b in zip(self.loss_counts, counts, strict=True)]

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.skipped, self.seconds = epoch, 0, 0, 0.0
        self.loss_totals = [0.0] * len(TERMS)
        self.loss_counts = [0.0] * len(TERMS)
