"""The block of SASRec (Kang and McAuley, ICDM '18), with the details of the PNFRec authors' code.

P tokens of all users, D width, H heads, G users of one group, L its length, E = D / H.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import Groups
from pnfrec_dist.model.block import Block, BlockSize
from pnfrec_dist.model.dropout import Dropout, dropout
from pnfrec_dist.model.few_shapes import Linear
from pnfrec_dist.model.layer_norm import LayerNorm

GPU_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, which plans anew for each number of users and length."""


class SASRecBlock(Block):
    """q = LN(x); x = q + Attn(q, x, x), causal; x = LN(x); x = x + FFN(x)."""

    is_recordable = True

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.dropout = settings.dropout
        self.attention_norm = LayerNorm(width)
        self.query = Linear(width, width)
        self.key_value = Linear(width, 2 * width)
        self.output = Linear(width, width)
        self.feed_forward_norm = LayerNorm(width)
        self.feed_forward = nn.Sequential(
            Linear(width, width),
            Dropout(settings.dropout),
            nn.ReLU(),
            Linear(width, width),
            Dropout(settings.dropout),
        )

    def forward(self, x_PD: Tensor, groups: Groups) -> Tensor:
        query_PD, q_PD, k_PD, v_PD = self._project(x_PD)
        return self._feed(query_PD, self._attend(q_PD, k_PD, v_PD, groups))

    @staticmethod
    def size(settings: EncoderSettings, length: int) -> BlockSize:
        width = settings.hidden_size
        # A GPU's attention keeps no weights.
        return BlockSize(6 * width * width + 10 * width, 16 * width + 3 * settings.num_heads * length, 12 * width)

    def initialize(self, generator: torch.Generator) -> None:
        """Query, key and value weights: uniform over +-sqrt(6 / 4D). This is Xavier's range for the [3D, D] matrix of
        torch.nn.MultiheadAttention, which the authors' code leaves at its default."""
        bound = math.sqrt(6 / (4 * self.query.in_features))
        for projection in (self.query, self.key_value):
            projection.weight.uniform_(-bound, bound, generator=generator)

    def compile_tokenwise(self) -> None:
        """Compiles all but attention: its shapes are those of the groups, and every batch would compile new ones."""
        self._project = torch.compile(self._project, dynamic=True)
        self._feed = torch.compile(self._feed, dynamic=True)

    def _project(self, x_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query_PD = self.attention_norm(x_PD)
        return query_PD, self.query(query_PD), *self.key_value(x_PD).chunk(2, dim=-1)

    def _attend(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor, groups: Groups) -> Tensor:
        """Group by group, as attention mixes the tokens of a user."""
        dropout_p = self.dropout if self.training else 0.0
        tokens = [users * length for users, length in groups]
        mixed = []
        for (users, length), *parts in zip(groups, *(t.split(tokens) for t in (q_PD, k_PD, v_PD)), strict=True):
            q_GHLE, k_GHLE, v_GHLE = (t.view(users, length, self.num_heads, -1).transpose(1, 2) for t in parts)
            mixed_GHLE = causal_attention(q_GHLE, k_GHLE, v_GHLE, dropout_p)
            mixed.append(mixed_GHLE.transpose(1, 2).flatten(2).flatten(0, 1))
        # Without users, every weight must still get a (zero) gradient: data-parallel training expects it.
        return torch.cat(mixed) if mixed else q_PD + k_PD + v_PD

    def _feed(self, query_PD: Tensor, mixed_PD: Tensor) -> Tensor:
        x_PD = self.feed_forward_norm(query_PD + self.output(mixed_PD))
        return x_PD + self.feed_forward(x_PD)


def causal_attention(q_GHLE: Tensor, k_GHLE: Tensor, v_GHLE: Tensor, dropout_p: float) -> Tensor:
    """Causal attention, [G, H, L, E], with dropout on the attention weights.

    On a CPU, the fused kernels have no dropout, and torch's other path draws a Bernoulli number for each weight.
    Matmuls are in float32 there: oneDNN would make a kernel for each new number of users and length (few_shapes.py).
    """
    if q_GHLE.is_cuda:
        with sdpa_kernel(GPU_KERNELS):
            return F.scaled_dot_product_attention(q_GHLE, k_GHLE, v_GHLE, dropout_p=dropout_p, is_causal=True)
    if dropout_p == 0:
        return F.scaled_dot_product_attention(q_GHLE, k_GHLE, v_GHLE, dropout_p=dropout_p, is_causal=True)
    length, width = q_GHLE.shape[2:]
    wide = torch.promote_types(q_GHLE.dtype, torch.float32)
    q, k, v = (t.flatten(0, 1).to(wide) for t in (q_GHLE, k_GHLE, v_GHLE))
    future_LL = q.new_full((length, length), -torch.inf).triu(1)
    with torch.autocast("cpu", enabled=False):
        weights = torch.baddbmm(future_LL, q, k.transpose(1, 2), alpha=1 / math.sqrt(width)).softmax(dim=-1)
        return torch.bmm(dropout(weights, dropout_p), v).view_as(q_GHLE).to(q_GHLE.dtype)
