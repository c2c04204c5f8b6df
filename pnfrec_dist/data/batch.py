"""Ragged histories -> tensors of one rank's share of a global batch.

B users, L positions, N negatives of a user.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config import EncoderSettings, LossSettings
from pnfrec_dist.data.prepared import Ragged, TrainData
from pnfrec_dist.schema import PAD_ID

IGNORE_INDEX = -100
"""Target of a padding position."""


@dataclass(frozen=True)
class Sequences:
    """Next-item prediction over one side of the users: right-padded, position 0 the oldest item."""

    inputs_BL: Tensor
    targets_BL: Tensor
    """item ids, IGNORE_INDEX where there is nothing to predict"""


@dataclass(frozen=True)
class TrainBatch:
    """What one training step of one rank reads; a part that the loss does not use is None."""

    positive: Sequences
    negative: Sequences | None
    contrast_BN: Tensor | None
    """negative items that L_c contrasts with, PAD_ID-padded"""

    @property
    def num_users(self) -> int:
        return len(self.positive.inputs_BL)


def train_batch(
    data: TrainData, rows: np.ndarray, encoder: EncoderSettings, loss: LossSettings, device: torch.device
) -> TrainBatch:
    """The batch of users `rows`: for each side the newest max_length + 1 items, as inputs and targets."""
    positive = _window(data.positive, rows, encoder.max_length, device)
    uses_negatives = loss.alpha > 0 or loss.beta > 0
    negative = _window(data.negative, rows, encoder.max_length, device) if uses_negatives else None
    return TrainBatch(
        positive=_next_item(positive),
        negative=_next_item(negative) if negative is not None and loss.alpha > 0 else None,
        contrast_BN=negative if loss.beta > 0 else None,
    )


def history_batch(histories: Ragged, rows: np.ndarray, max_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inference input: (inputs_BL, index of each user's last position [B]; 0 for an empty history)."""
    ids, lengths = histories.newest(rows, max_length)
    last = np.maximum(lengths - 1, 0)
    return torch.from_numpy(ids).to(device), torch.from_numpy(last).to(device)


def _window(histories: Ragged, rows: np.ndarray, max_length: int, device: torch.device) -> Tensor:
    ids, _ = histories.newest(rows, max_length + 1)
    return torch.from_numpy(ids).to(device)


def _next_item(window_BL: Tensor) -> Sequences:
    if window_BL.shape[1] == 1:  # nobody in this share has two items: keep one position, predict nothing
        window_BL = torch.nn.functional.pad(window_BL, (0, 1), value=PAD_ID)
    targets_BL = window_BL[:, 1:]
    return Sequences(window_BL[:, :-1], targets_BL.masked_fill(targets_BL == PAD_ID, IGNORE_INDEX))
