"""What a run knows besides tensors: where it is, and what was best."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pnfrec_dist.losses.objective import TERMS


@dataclass
class TrainState:
    """Position and early stopping of a run; plain values, so that it is JSON in a checkpoint.

    epoch: the epoch in progress, counted from 1; step: steps done in it. The sums cover those steps, over all ranks.
    """

    epoch: int = 1
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    loss_totals: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))
    loss_counts: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))
    seconds: float = 0.0

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def epochs_without_improvement(self) -> int:
        """Epochs finished since the best one."""
        return self.epoch - 1 - self.best_epoch

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.seconds = epoch, 0, 0.0
        self.loss_totals = [0.0] * len(TERMS)
        self.loss_counts = [0.0] * len(TERMS)
