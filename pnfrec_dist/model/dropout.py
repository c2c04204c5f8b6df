"""Dropout with a mask that is cheap on a CPU: 16 random bits per element instead of a Bernoulli draw."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

STEPS = 1 << 16
"""Probabilities are rounded to multiples of 1 / STEPS, at least one; the scale uses the rounded probability."""


class Dropout(nn.Module):
    """In training, each element is 0 with probability `p`, else divided by 1 - p. Draws from torch's generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    if x.is_cuda:
        return F.dropout(x, p)
    return _Dropout.apply(x, p) if p > 0 else x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = min(max(round((1 - p) * STEPS), 1), STEPS - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        is_kept = (bits.view(torch.int16)[: x.numel()] < kept - STEPS // 2).view(x.shape)
        ctx.save_for_backward(is_kept)
        ctx.scale = STEPS / kept
        return (x * is_kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (is_kept,) = ctx.saved_tensors
        return (grad_outputs[0] * is_kept).mul_(ctx.scale), None
