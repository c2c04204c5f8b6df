"""The SASRec encoder (Kang and McAuley, ICDM '18), with the details of the PNFRec authors' code.

B users, L positions, D width, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnfrec_dist.config import EncoderSettings

LAYER_NORM_EPS = 1e-8
INIT_STD = 0.02


class Block(nn.Module):
    """q = LN(x); x = q + Attn(q, x, x), causal; x = LN(x); x = x + FFN(x)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.dropout = settings.dropout
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width),
            nn.Dropout(settings.dropout),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.Dropout(settings.dropout),
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        query_BLD = self.attention_norm(x_BLD)
        x_BLD = query_BLD + self._attention(query_BLD, x_BLD)
        x_BLD = self.feed_forward_norm(x_BLD)
        return x_BLD + self.feed_forward(x_BLD)

    def _attention(self, query_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        q, (k, v) = self.query(query_BLD), self.key_value(x_BLD).chunk(2, dim=-1)
        q_BHLE, k_BHLE, v_BHLE = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        mixed_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, dropout_p=dropout, is_causal=True)
        return self.output(mixed_BHLE.transpose(1, 2).flatten(-2))


class Encoder(nn.Module):
    """Item vectors of a right-padded window -> hidden state per position.

    Attention is causal and padding follows the real positions, so no real position depends on it: no padding mask.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.scale = math.sqrt(settings.hidden_size)
        self.positions = nn.Embedding(settings.max_length, settings.hidden_size)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_blocks))
        self.norm = nn.LayerNorm(settings.hidden_size, eps=LAYER_NORM_EPS)

    def forward(self, item_vectors_BLD: Tensor) -> Tensor:
        """L at most max_length -> hidden_BLD."""
        x_BLD = item_vectors_BLD * self.scale + self.positions.weight[: item_vectors_BLD.shape[1]]
        x_BLD = self.dropout(x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """normal(0, 0.02) for embeddings and linear layers, zero biases, layer norms at identity."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.normal_(0.0, INIT_STD, generator=generator)
            part.bias.zero_()
        elif isinstance(part, nn.Embedding):
            part.weight.normal_(0.0, INIT_STD, generator=generator)
