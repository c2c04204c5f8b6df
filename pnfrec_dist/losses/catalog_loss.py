"""What a cross-entropy over the catalog is: exact, or over some items. One is chosen by loss.cross_entropy.

T real targets, D width, K sampled items.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.model.item_table import ItemTable

FLOAT = 4


@dataclass(frozen=True)
class Samples:
    """Vectors that a loss over sampled items compares."""

    target_TD: Tensor
    """of the targets"""
    sampled_KD: Tensor
    """of sampled.items_K"""
    sampled: Sampled


@dataclass(frozen=True)
class Targets:
    """All targets of a rank's part of a step, of both sides, one after another."""

    hidden_TD: Tensor
    """the encoder's output where the target comes next"""
    targets_T: Tensor
    """item ids"""
    weights_T: Tensor
    """what one of them adds to the loss"""
    samples: Samples | None = None
    """where the loss samples items"""


@dataclass(frozen=True)
class StepExtent:
    """How much one rank's part of a step holds, for the memory plan."""

    targets: int
    rows: int
    """of the item table on this rank"""
    num_items: int
    shards: int
    """ranks that hold the item table between them; 1: each holds all"""
    on_gpu: bool


class CatalogLoss(ABC):
    """-log of the probability of each target among the catalog's items, exact or estimated."""

    samples_items: bool = False
    """whether steps draw items (data/item_sampler.py)"""
    touches_all_rows: bool = False
    """whether each step's gradient has all rows of the item table"""

    def require(self, settings: Settings) -> None:
        """Raises InputError for settings that it cannot take; takes all here."""
        return

    @abstractmethod
    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        """(sum of weight * loss, differentiable once; loss_T, for the record)."""

    @abstractmethod
    def bytes(self, extent: StepExtent, settings: Settings) -> int:
        """What logits, draws and the like take at a time."""

    @abstractmethod
    def ways_to_save(self, settings: Settings) -> dict[str, float]:
        """Flags that make bytes() smaller -> the share of it that they save about."""
