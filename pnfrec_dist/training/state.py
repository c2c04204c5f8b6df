"""What a run knows besides tensors: where it is, and what was best."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

FORMER_TERMS = ("ce_main", "ce_negative", "contrastive")
"""The order of sums in checkpoints of format 4."""


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
    loss_totals: dict[str, float] = field(default_factory=dict)
    """of the loss's terms"""
    loss_counts: dict[str, float] = field(default_factory=dict)
    """tokens behind them"""
    seconds: float = 0.0

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, content: dict[str, Any]) -> "TrainState":
        """What to_mapping gave, now or in checkpoints of format 4."""
        sums = {name: content[name] for name in ("loss_totals", "loss_counts")}
        named = {
            name: dict(zip(FORMER_TERMS, values, strict=True)) if isinstance(values, list) else dict(values)
            for name, values in sums.items()
        }
        return cls(**{**content, **named})

    @property
    def epochs_without_improvement(self) -> int:
        """Epochs finished since the best one."""
        return self.epoch - 1 - self.best_epoch

    def count_step(self, totals: dict[str, float], counts: dict[str, float]) -> None:
        """A step whose sums over all ranks are finite; by term of the loss."""
        self.skipped_in_a_row = 0
        self._move_on()
        for sums, of_step in ((self.loss_totals, totals), (self.loss_counts, counts)):
            for name, value in of_step.items():
                sums[name] = sums.get(name, 0.0) + value

    def skip_step(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        self._move_on()

    def _move_on(self) -> None:
        self.step += 1
        self.total_steps += 1

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.skipped, self.seconds = epoch, 0, 0, 0.0
        self.loss_totals, self.loss_counts = {}, {}
