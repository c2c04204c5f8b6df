"""Layer norm that keeps the dtype of its input, with statistics in float32 (Ba et al., 2016)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-8


class LayerNorm(nn.LayerNorm):
    """Autocast on a GPU would make bfloat16 inputs float32: a copy of every token's vector, and of its gradient."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not x.is_cuda or x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
