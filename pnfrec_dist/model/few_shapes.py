"""Linear layers for bfloat16 inputs: on a CPU, the numbers of rows of their matmuls take few values.

oneDNN makes a kernel for each new shape, which takes as long as the matmul of a batch. So the first rows, a multiple of
a block, are one matmul, and the last block, which overlaps them, is another one. Each row's result is that of one of
the two. On a GPU there is one matmul. On both, a matmul sums the bias gradient: torch's sum over rows takes longer.

R rows, I columns of the input, O of the output.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MIN_BLOCK = 8


class Linear(nn.Linear):
    """torch's, with few shapes on a CPU and faster bias gradients for bfloat16 inputs."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if x.dtype == self.weight.dtype or torch.compiler.is_compiling():
            return super().forward(x)
        return _Linear.apply(x.flatten(0, -2), self.weight, self.bias).view(*x.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        narrow_OI = weight_OI.to(x_RI.dtype)
        ctx.save_for_backward(x_RI, narrow_OI)
        ctx.wide = weight_OI.dtype
        if x_RI.is_cuda:
            return F.linear(x_RI, narrow_OI, bias_O.to(x_RI.dtype) if bias_O is not None else None)
        out_RO = x_RI.new_empty(len(x_RI), len(narrow_OI))
        for rows in spans(len(x_RI)):
            if bias_O is None:
                torch.mm(x_RI[rows], narrow_OI.T, out=out_RO[rows])
            else:
                torch.addmm(bias_O.to(x_RI.dtype), x_RI[rows], narrow_OI.T, out=out_RO[rows])
        return out_RO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RO,), (x_RI, narrow_OI) = grad_outputs, ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        grad_RI = grad_OI = grad_O = None
        if ctx.needs_input_grad[0]:
            grad_RI = torch.empty_like(x_RI)
            for rows in [slice(None)] if x_RI.is_cuda else spans(len(x_RI)):
                torch.mm(grad_RO[rows], narrow_OI, out=grad_RI[rows])
        if ctx.needs_input_grad[1]:
            grad_OI = (grad_RO.T @ x_RI if x_RI.is_cuda else _sum_of_outer(grad_RO, x_RI)).to(ctx.wide)
        if ctx.needs_input_grad[2]:
            grad_O = (grad_RO.new_ones(1, len(grad_RO)) @ grad_RO)[0].to(ctx.wide)
        return grad_RI, grad_OI, grad_O


def spans(rows: int) -> list[slice]:
    """The first rows and the last block; one slice if the rows are a multiple of a block, which is 1/16 to 1/32 of
    them."""
    block = max(1 << max(rows.bit_length() - 5, 0), MIN_BLOCK)
    first = rows // block * block
    if first in (0, rows):
        return [slice(0, rows)]
    return [slice(0, first), slice(rows - block, rows)]


def _sum_of_outer(grad_RO: Tensor, x_RI: Tensor) -> Tensor:
    """grad.T @ x. The last rows are padded with zeros to a block."""
    first, *last = spans(len(x_RI))
    grad_OI = grad_RO[first].T @ x_RI[first]
    if last:
        block = last[0].stop - last[0].start
        missing = block - (len(x_RI) - first.stop)
        tail_RO, tail_RI = (F.pad(t[first.stop :], (0, 0, 0, missing)) for t in (grad_RO, x_RI))
        grad_OI = grad_OI.float() + (tail_RO.T @ tail_RI)
    return grad_OI
