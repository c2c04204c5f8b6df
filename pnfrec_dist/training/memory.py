"""How much memory a worker will need, before it starts."""

from dataclasses import dataclass

import numpy as np

from pnfrec_dist.config import Settings
from pnfrec_dist.data.prepared import Ragged, TrainData

FLOAT = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected bytes of one worker in one step, of the parts that grow with the settings."""

    parameters: int
    """weights, gradients and Adam's two moments"""
    activations: int
    """both encoders' intermediate results kept for the backward pass"""
    logits: int
    """target x item scores, their softmax and its gradient"""

    @property
    def total(self) -> int:
        return self.parameters + self.activations + self.logits


def estimate_memory(settings: Settings, data: TrainData, num_items: int, num_workers: int) -> MemoryEstimate:
    """An upper estimate for batches of the longest users; it leaves out Python and the libraries (about 0.5 GB)."""
    encoder, width = settings.encoder, settings.encoder.hidden_size
    sides = [data.positive, data.negative] if settings.loss.alpha > 0 else [data.positive]
    per_encoder = encoder.num_blocks * (6 * width * width + 10 * width) + encoder.max_length * width + 2 * width
    weights = (num_items + 1) * width + len(sides) * per_encoder
    users = -(-min(settings.train.batch_size, len(data)) // num_workers)
    activations = logits = 0
    for side in sides:
        targets = _largest_targets(side, encoder.max_length, users)
        length = min(encoder.max_length, max(int(side.lengths.max(initial=1)), 1))
        attention = 3 * encoder.num_heads * length * length
        activations += users * FLOAT * (encoder.num_blocks * (14 * length * width + attention) + 4 * length * width)
        logits += 3 * FLOAT * targets * num_items
    return MemoryEstimate(4 * FLOAT * weights, activations, logits)


def _largest_targets(side: Ragged, max_length: int, users: int) -> int:
    """Targets of the `users` users with the most of them."""
    targets = np.clip(side.lengths - 1, 0, max_length)
    return int(np.sort(targets)[-users:].sum())
