"""The state of a run apart from tensors: its position, and its best epoch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

FORMER_TERMS = ("ce_main", "ce_negative", "contrastive")
"""The order of sums in checkpoints of format 4."""


@dataclass
class TrainState:
    """Position and early stopping of a run; plain values, stored as JSON in a checkpoint.

    epoch: the epoch in progress, starting at 1; step: steps done in it. The sums cover these steps over all ranks,
    without steps that were skipped because they were not finite.
    """

    epoch: int = 1
    step: int = 0
    total_steps: int = 0
    """steps done in all epochs"""
    best_score: float = -1.0
    best_epoch: int = 0
    best_steps: int = 0
    """total_steps at the end of the best epoch; its checkpoint has this number in its name"""
    skipped: int = 0
    """skipped steps of this epoch"""
    skipped_in_a_row: int = 0
    loss_totals: dict[str, float] = field(default_factory=dict)
    """term of the loss -> sum of this epoch"""
    loss_counts: dict[str, float] = field(default_factory=dict)
    """term -> number of tokens"""
    seconds: float = 0.0

    def to_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, content: dict[str, Any]) -> "TrainState":
        """Reads the result of to_mapping, also from checkpoints of format 4."""
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
        """Counts a finite step. totals, counts: term of the loss -> sum over all ranks."""
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
