"""The blocks of the encoder: a block mixes the tokens of each user and keeps their shape.

P tokens of all users, D width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import Groups


@dataclass(frozen=True)
class BlockSize:
    """The size of one block for the memory plan, in floats."""

    parameters: int
    activations_per_token: int
    """kept for the backward pass"""
    activations_on_gpu: int | None = None
    """the same on a GPU, where it differs"""


class Block(nn.Module, ABC):
    """A block of the encoder; encoder.block chooses one (config/registry.py).

    No position may see a later one of its user: windows are padded on the right, and every next item is predicted.
    """

    is_recordable: bool = False
    """whether a CUDA graph may replay it (training/step_graph.py): nothing depends on values that the host reads"""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def size(settings: EncoderSettings, length: int) -> BlockSize:
        """length: length of the longest window."""

    @abstractmethod
    def forward(self, x_PD: Tensor, groups: Groups) -> Tensor:
        """groups: how tokens belong to users. Every parameter must get a gradient (zero) even if there is no token."""

    def initialize(self, generator: torch.Generator) -> None:
        """Sets parameters that should not start as normal(0, 0.02) (linear layers, embeddings) or zero (biases)."""

    def compile_tokenwise(self) -> None:
        """Compiles the token-wise parts, for any number of tokens; by default there are none."""
