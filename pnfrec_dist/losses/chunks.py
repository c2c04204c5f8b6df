"""Shared code of losses over sampled items; computes losses for some targets at a time.

T real targets.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.losses.catalog_loss import FLOAT, CatalogLoss, StepExtent
from pnfrec_dist.losses.softmax_sweeps import blocks

CHUNK_LOGITS = 1 << 21
"""Most logits at a time; backward computes them again."""


def in_chunks(losses: Callable[..., Tensor], width: int, weights_T: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) of `losses` over rows of the inputs, CHUNK_LOGITS / width rows at a time."""
    size = max(CHUNK_LOGITS // max(width, 1), 1)
    parts = [
        checkpoint(losses, *(t[rows] for t in inputs), use_reentrant=False)
        for rows in blocks(max(len(weights_T), 1), size)
    ]
    loss_T = torch.cat(parts)
    return (weights_T.to(loss_T.dtype) * loss_T).sum(), loss_T.detach()


def wide(logits: Tensor) -> Tensor:
    """In float32 at least, also under autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class SampledItemsLoss(CatalogLoss):
    """A loss over sampled.num_items items that each step draws."""

    samples_items = True

    def bytes(self, extent: StepExtent, settings: Settings) -> int:
        drawn, width = settings.sampled.num_items, settings.encoder.vector_size
        distinct = min(drawn, extent.num_items)
        return FLOAT * (6 * drawn + 3 * width * distinct + 4 * max(CHUNK_LOGITS, distinct))

    def ways_to_save(self, settings: Settings) -> dict[str, float]:
        return {"a lower --sampled.num-items": 0.5}
