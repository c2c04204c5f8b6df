"""The encoder: positions, dropout, blocks, final norm (SASRec, Kang and McAuley, ICDM '18).

P tokens of all users, D width.
"""

import math

import torch
from torch import Tensor, nn

from pnfrec_dist.config.registry import BLOCKS
from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import Groups
from pnfrec_dist.errors import require
from pnfrec_dist.model.block import Block, BlockSize
from pnfrec_dist.model.dropout import Dropout
from pnfrec_dist.model.layer_norm import LayerNorm

INIT_STD = 0.02


def block_class(settings: EncoderSettings) -> type[Block]:
    """The class that settings.block names. Raises InputError if it is no block."""
    return BLOCKS.load(settings.block)


def block_size(settings: EncoderSettings, length: int) -> BlockSize:
    """The size of one block, as Block.size says. Raises InputError if a user's own block does not tell it."""
    with BLOCKS.own_code(settings.block, "cannot tell its size"):
        size = block_class(settings).size(settings, length)
    require(isinstance(size, BlockSize), BLOCKS.setting, settings.block, "a class of Block whose size is a BlockSize")
    return size


class Encoder(nn.Module):
    """Item vectors of right-padded windows, packed group by group -> hidden state per token.

    Attention is causal and padding comes after the real positions, so no padding mask is needed.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.scale = math.sqrt(settings.hidden_size)
        self.positions = nn.Embedding(settings.positions, settings.hidden_size)
        self.reads_signs = settings.history_kind.reads_signs
        self.signs = nn.Embedding(2, settings.hidden_size) if self.reads_signs else None
        """of a like and of a dislike"""
        self.dropout = Dropout(settings.dropout)
        block = block_class(settings)
        self.blocks = nn.ModuleList(block(settings) for _ in range(settings.num_blocks))
        self.norm = LayerNorm(settings.hidden_size)

    def forward(self, item_vectors_PD: Tensor, groups: Groups, is_disliked_P: Tensor | None = None) -> Tensor:
        """-> hidden_PD. groups: no length above settings.positions; is_disliked_P: read only with signs."""
        weight = self.positions.weight
        positions = [weight[:length].expand(users, -1, -1).flatten(0, 1) for users, length in groups]
        x_PD = torch.add(torch.cat([*positions, weight[:0]]), item_vectors_PD, alpha=self.scale)
        if self.signs is not None:
            assert is_disliked_P is not None
            like_D, dislike_D = self.signs.weight
            x_PD = x_PD + torch.where(is_disliked_P[:, None], dislike_D, like_D)
        device = x_PD.device.type
        if torch.is_autocast_enabled(device):  # tokens stay narrow from here on, or each matmul would copy them
            x_PD = x_PD.to(torch.get_autocast_dtype(device))
        x_PD = self.dropout(x_PD)
        for block in self.blocks:
            x_PD = block(x_PD, groups)
        return self.norm(x_PD)


def compile_encoders(module: nn.Module) -> None:
    """Uses torch.compile for every block in `module`. Drops what was compiled for earlier models of this process,
    because torch compiles a function only for a few sizes."""
    torch.compiler.reset()
    for block in _blocks(module):
        block.compile_tokenwise()


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """normal(0, 0.02) for embeddings and linear layers, zero biases, layer norms at identity; then the blocks' own
    initialisation."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0.0, INIT_STD, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
    for block in _blocks(module):
        block.initialize(generator)


def _blocks(module: nn.Module) -> list[Block]:
    return [part for part in module.modules() if isinstance(part, Block)]
