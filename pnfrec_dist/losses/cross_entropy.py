"""Exact cross-entropy over the full catalog, without its logits in memory (paper, section 3.2).

T real targets, D width, V = N + 1 rows of the item table (row 0 is padding, not a class), S of them on this rank, N
items.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pnfrec_dist.distributed import World
from pnfrec_dist.losses.softmax_sweeps import add_class_gradient, dot, log_sum_exp, one_sweep, softmax_mean
from pnfrec_dist.losses.tiling import Tiling
from pnfrec_dist.model.item_table import ItemTable, add_rows


def cross_entropy(
    hidden_TD: Tensor,
    table: ItemTable,
    targets_T: Tensor,
    weights_T: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum over targets of weight * loss, loss_T), where loss = -log softmax over items(hidden . item)[target].

    targets_T: item ids 1..N. The total is differentiable once, with respect to hidden_TD and the table; loss_T has no
    gradient and is for logging. Matmuls run in matmul_dtype (default: hidden's dtype), sums in hidden's dtype, at least
    float32. If a gradient is needed, forward computes it, so that no tile is kept for backward.

    With a sharded table, each rank has its own targets. Hidden states are sent to all ranks, maxima and sums are
    combined over ranks, and the gradients of hidden states are summed and sent back. Rows of the table are not sent.
    """
    return _CrossEntropy.apply(
        hidden_TD, table.weight, targets_T, weights_T, tiling, matmul_dtype or hidden_TD.dtype, table
    )


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        table_SD: Tensor,
        targets_T: Tensor,
        weights_T: Tensor,
        tiling: Tiling,
        matmul_dtype: torch.dtype,
        table: ItemTable,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        shards, sizes = table.shards, table.shards.sizes(len(targets_T))
        own = slice(sum(sizes[: shards.rank]), sum(sizes[: shards.rank + 1]))
        with torch.autocast(hidden_TD.device.type, enabled=False):
            all_TD = shards.gather_rows(hidden_TD.to(wide), sizes)
            targets_T = shards.gather_rows(targets_T, sizes)
            weights_T = shards.gather_rows(weights_T.to(wide), sizes)
            is_here_T = (targets_T >= table.first_row) & (targets_T < table.end_row)
            here_T = is_here_T.nonzero()[:, 0] if table.is_sharded else slice(None)
            target_row_T = targets_T[here_T] - table.first_row
            target_TD = table_SD[target_row_T]
            target_logit_T = torch.zeros_like(weights_T)
            target_logit_T[here_T] = dot(all_TD[here_T].to(matmul_dtype), target_TD.to(matmul_dtype), wide)
            shards.sum(target_logit_T)
            padding = 1 if table.first_row == 0 else 0
            classes_ND = table_SD[padding:]
            if any(ctx.needs_input_grad[:2]):
                grad_table_SD = torch.zeros_like(table_SD)
                if tiling.sweep == "fused":
                    sweep = _fused_sweeps
                else:
                    sweep = _one_sweep if tiling.sweep == "one" and not table.is_sharded else _two_sweeps
                lse_T, grad_TD = sweep(
                    all_TD, classes_ND, weights_T, tiling, matmul_dtype, grad_table_SD[padding:], shards
                )
                weight_T1 = weights_T[here_T, None]
                grad_TD[here_T] -= weight_T1 * target_TD
                add_rows(grad_table_SD, target_row_T, all_TD[here_T] * -weight_T1)
                ctx.gradients = (shards.sum_rows(grad_TD, sizes).to(hidden_TD.dtype), grad_table_SD)
            else:
                lse_T = _over_shards(log_sum_exp(all_TD, classes_ND, tiling, matmul_dtype), shards)
            loss_T = (lse_T - target_logit_T)[own].clamp_(min=0.0)
            total = (weights_T[own] * loss_T).sum()
        ctx.mark_non_differentiable(loss_T)
        return total, loss_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_total = grad_outputs[0]
        assert ctx.gradients is not None, "the gradients were already used: call backward once"
        gradients, ctx.gradients = ctx.gradients, None
        return *(g.mul_(grad_total) if grad_total.is_cuda or grad_total != 1 else g for g in gradients), *[None] * 5


def _two_sweeps(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_T: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
    shards: World,
) -> tuple[Tensor, Tensor]:
    """(lse_T over all ranks' classes, gradient of hidden from this rank's). The classes' gradient is added in place."""
    here_T, mean_TD, here_TB = softmax_mean(hidden_TD, classes_ND, tiling, matmul_dtype)
    lse_T = _over_shards(here_T, shards)
    weights_TB = here_TB.sub_(lse_T[:, None]).exp_().mul_(weights_T[:, None])
    add_class_gradient(hidden_TD, classes_ND, weights_TB, tiling, matmul_dtype, grad_classes_ND)
    return lse_T, mean_TD.mul_((weights_T * (here_T - lse_T).exp())[:, None])


def _fused_sweeps(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_T: Tensor,
    _: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
    shards: World,
) -> tuple[Tensor, Tensor]:
    """As _two_sweeps. The first sweep also gives hidden's gradient, the softmax's mean of this rank's classes."""
    from pnfrec_dist.losses import gpu_kernels  # only torch's GPU builds bring Triton

    padding = -hidden_TD.shape[1] % 16  # rows that start at multiples of 32 bytes load as vectors
    hidden_TW, classes_NW = (F.pad(rows.to(matmul_dtype), (0, padding)) for rows in (hidden_TD, classes_ND))
    here_T, mean_TW = gpu_kernels.softmax_mean(hidden_TW, classes_NW)
    lse_T = _over_shards(here_T, shards)
    gpu_kernels.add_class_gradient(hidden_TW, classes_NW, weights_T, lse_T, grad_classes_ND)
    return lse_T, mean_TW[:, : hidden_TD.shape[1]] * (weights_T * (here_T - lse_T).exp())[:, None]


def _over_shards(lse_T: Tensor, shards: World) -> Tensor:
    """The log-sum-exp over all ranks' classes from each rank's own."""
    return shards.gather_rows(lse_T[None], [1] * shards.size).logsumexp(dim=0) if shards.size > 1 else lse_T


def _one_sweep(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_T: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
    _: World,
) -> tuple[Tensor, Tensor]:
    """As _two_sweeps, for tiles that span the whole catalog on one rank."""
    return one_sweep(hidden_TD, classes_ND, weights_T, tiling, matmul_dtype, grad_classes_ND)
