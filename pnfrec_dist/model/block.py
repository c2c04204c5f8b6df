"""What the encoder is made of: a block mixes the tokens of each user and keeps their shape.

P tokens of all users, D width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import Groups

LAYER_NORM_EPS = 1e-8


@dataclass(frozen=True)
class BlockSize:
    """What one block takes, for the memory plan; numbers of floats."""

    parameters: int
    activations_per_token: int
    """kept for the backward pass"""


class Block(nn.Module, ABC):
    """A block of the encoder. One is chosen by encoder.block (config/registry.py).

    No position may see a later one of its user: windows are padded on the right, and training predicts every next item.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def size(settings: EncoderSettings, length: int) -> BlockSize:
        """length: of the longest window."""

    @abstractmethod
    def forward(self, x_PD: Tensor, groups: Groups) -> Tensor:
        """groups: how tokens belong to users. Without a token, every parameter still gets its (zero) gradient."""

    def initialize(self, generator: torch.Generator) -> None:
        """Draws what is not to be normal(0, 0.02) (linear layers, embeddings) or zero (biases), as it is by now."""

    def compile_tokenwise(self) -> None:
        """Compiles what treats tokens one by one, for any number of them; here nothing."""
