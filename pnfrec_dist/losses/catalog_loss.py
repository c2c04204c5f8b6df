"""The interface of a cross-entropy over the catalog, exact or over some items; loss.cross_entropy chooses one.

T real targets, D width, K sampled items.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.model.item_table import ItemTable

FLOAT, NARROW = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""


@dataclass(frozen=True)
class Samples:
    """The vectors that a loss over sampled items uses."""

    target_TD: Tensor
    """vectors of the targets"""
    sampled_KD: Tensor
    """vectors of sampled.items_K"""
    sampled: Sampled


@dataclass(frozen=True)
class Targets:
    """All targets of one rank's part of a step: those of the main side, then those of the other sides."""

    hidden_TD: Tensor
    """the encoder's output at the position before the target"""
    targets_T: Tensor
    """item ids"""
    weights_T: Tensor
    """weight of each target in the loss"""
    samples: Samples | None = None
    """given if the loss samples items"""
    bounds: Tensor | None = None
    """[2], given if there is padding: the first of the real targets, and the end; all others have weight 0"""


@dataclass(frozen=True)
class StepExtent:
    """Size of one rank's part of a step, for the memory plan."""

    targets: int
    rows: int
    """rows of the item table on this rank"""
    num_items: int
    shards: int
    """ranks that share the rows of the item table; 1: each holds all"""
    on_gpu: bool


class CatalogLoss(ABC):
    """-log of the probability of each target among all items, exact or estimated."""

    samples_items: bool = False
    """whether each step draws items (data/item_sampler.py)"""
    touches_all_rows: bool = False
    """whether each step has a gradient for all rows of the item table"""

    def require(self, settings: Settings) -> None:
        """Raises InputError for settings that do not fit this loss; by default all fit."""
        return

    @abstractmethod
    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        """(sum of weight * loss, differentiable once; loss_T without gradient, for logging)."""

    @abstractmethod
    def bytes(self, extent: StepExtent, settings: Settings) -> int:
        """Most bytes of logits, sampled vectors and similar at a time."""

    @abstractmethod
    def ways_to_save(self, settings: Settings) -> dict[str, float]:
        """Advice to lower bytes(), as flags -> about which share of it that saves."""
