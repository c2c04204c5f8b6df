"""Dropout with a mask that is cheap on a CPU: 16 random bits per element instead of a Bernoulli draw."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

STEPS = 1 << 16
"""Probabilities are rounded to multiples of 1 / STEPS, at least one; the scale uses the rounded probability."""
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type whose bits mask those of a float of this size: torch's operations on bool are slow on a CPU."""


class Dropout(nn.Module):
    """In training, each element is 0 with probability `p`, else divided by 1 - p. Draws from torch's generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    if x.is_cuda or torch.compiler.is_compiling():  # torch.compile cannot save a mask that is a view of other integers
        return F.dropout(x, p)
    return _Dropout.apply(x, p) if p > 0 else x


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = min(max(round((1 - p) * STEPS), 1), STEPS - 1)
        end = kept - STEPS // 2  # of 16 bits as a signed number, `kept` of STEPS values are below it
        mask = _random_bits(x.numel()).clamp_(end - 1, end).sub_(end).view(x.shape)  # -1 has all bits, 0 none
        ctx.save_for_backward(mask)
        ctx.scale = STEPS / kept
        return _masked(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mask,) = ctx.saved_tensors
        return _masked(grad_outputs[0], mask).mul_(ctx.scale), None


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    bits_type = BITS_OF[x.element_size()]
    return (x.view(bits_type) & mask.to(bits_type)).view(x.dtype)


def _random_bits(count: int) -> Tensor:
    """16 random bits each, [count], int16."""
    return torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
