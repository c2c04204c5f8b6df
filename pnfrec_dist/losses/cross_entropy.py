"""Exact cross-entropy over the full catalog, without its logits in memory (paper, section 3.2).

T real targets, D width, V = N + 1 rows of the item table (row 0 is padding, not a class), S of them on this rank, N
items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum over targets of weight * loss, loss_T), where loss = -log softmax over items(hidden . item)[target].

    targets_T: item ids 1..N. The total is differentiable once, with respect to hidden_TD and the table; loss_T has no
    gradient and is for logging. Matmuls run in matmul_dtype (default: hidden's dtype), sums in hidden's dtype, at least
    float32. If a gradient is needed, forward computes it, so that no tile is kept for backward. With fused tiles, the
    table's gradient is added to table.weight.grad, by the backward of table.lookup or by table.collect_gradients.

    bounds: as Targets.bounds; the fused kernels leave out what is outside, whose loss_T is then not the loss.

    With a sharded table, each rank has its own targets. Hidden states are sent to all ranks, maxima and sums are
    combined over ranks, and the gradients of hidden states are summed and sent back. Rows of the table are not sent.
    """
    how = (tiling, matmul_dtype or hidden_TD.dtype, table, bounds)
    return _CrossEntropy.apply(hidden_TD, table.weight, targets_T, weights_T, how)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        table_SD: Tensor,
        targets_T: Tensor,
        weights_T: Tensor,
        how: tuple[Tiling, torch.dtype, ItemTable, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        tiling, matmul_dtype, table, bounds = how
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        shards, sizes = table.shards, table.shards.sizes(len(targets_T))
        own = slice(sum(sizes[: shards.rank]), sum(sizes[: shards.rank + 1]))
        with torch.autocast(hidden_TD.device.type, enabled=False):
            all_TD = shards.gather_rows(hidden_TD.to(wide), sizes)
            targets_T = shards.gather_rows(targets_T, sizes)
            weights_T = shards.gather_rows(weights_T.to(wide), sizes)
            softmax = _Softmax(all_TD, targets_T, weights_T, table, tiling, matmul_dtype, bounds)
            if any(ctx.needs_input_grad[:2]):
                takes_one = tiling.sweep == "one" and not table.is_sharded
                found = softmax.in_one_sweep() if takes_one else softmax.in_two_sweeps()
                lse_T, target_logit_T, grad_TD, of_table = found
                ctx.gradients = (shards.sum_rows(grad_TD, sizes).to(hidden_TD.dtype), of_table)
            else:
                lse_T, target_logit_T = softmax.log_sum_exp(), softmax.target_logits(softmax.target_rows())
            loss_T = (lse_T - target_logit_T)[own].clamp_(min=0.0)
            total = (weights_T[own] * loss_T).sum()
        ctx.table = table
        ctx.mark_non_differentiable(loss_T)
        return total, loss_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_total = grad_outputs[0]
        assert ctx.gradients is not None, "the gradients were already used: call backward once"
        (grad_TD, of_table), ctx.gradients = ctx.gradients, None
        if callable(of_table):
            ctx.table.add_in_backward(partial(of_table, grad_total))
            return grad_TD.mul_(grad_total), *[None] * 4
        is_one = not grad_total.is_cuda and grad_total == 1
        return *(g if is_one else g.mul_(grad_total) for g in (grad_TD, of_table)), *[None] * 3


AddGradient = Callable[[Tensor, Tensor], None]
"""(grad_total, gradient of the table's rows [S, D]): adds the gradient, times grad_total, in place."""


@dataclass(frozen=True)
class _Softmax:
    """The softmax of the targets of all ranks that share the table, over this rank's classes."""

    hidden_TD: Tensor
    targets_T: Tensor
    weights_T: Tensor
    table: ItemTable
    tiling: Tiling
    matmul_dtype: torch.dtype
    bounds: Tensor | None

    @property
    def padding(self) -> int:
        """Rows of this rank that are no class."""
        return 1 if self.table.first_row == 0 else 0

    @property
    def classes_ND(self) -> Tensor:
        return self.table.weight.detach()[self.padding :]

    @cached_property
    def here_T(self) -> Any:
        """The targets whose item is on this rank, as an index."""
        is_here_T = (self.targets_T >= self.table.first_row) & (self.targets_T < self.table.end_row)
        return is_here_T.nonzero()[:, 0] if self.table.is_sharded else slice(None)

    def target_rows(self) -> Tensor:
        """The vectors of the targets that are here, [T here, D]."""
        return self.table.weight.detach()[self.targets_T[self.here_T] - self.table.first_row]

    def log_sum_exp(self) -> Tensor:
        return self._over_shards(log_sum_exp(self.hidden_TD, self.classes_ND, self.tiling, self.matmul_dtype))

    def target_logits(self, target_TD: Tensor) -> Tensor:
        """The logits of all ranks' targets, [T]; target_TD: target_rows()."""
        logits_T = torch.zeros_like(self.weights_T)
        hidden_TD = self.hidden_TD[self.here_T].to(self.matmul_dtype)
        logits_T[self.here_T] = dot(hidden_TD, target_TD.to(self.matmul_dtype), logits_T.dtype)
        return self.table.shards.sum(logits_T)

    def in_one_sweep(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(lse_T, logits of the targets [T], gradient of hidden [T, D], of the table's rows [S, D])."""
        grad_SD = torch.zeros_like(self.table.weight)
        found = one_sweep(
            self.hidden_TD,
            self.classes_ND,
            self.targets_T - self.padding,
            self.weights_T,
            self.tiling,
            self.matmul_dtype,
            grad_SD[self.padding :],
        )
        return *found, grad_SD

    def in_two_sweeps(self) -> tuple[Tensor, Tensor, Tensor, "Tensor | AddGradient"]:
        """As in_one_sweep; lse is over all ranks' classes, the gradient of hidden is this rank's part of it. The fused
        kernels leave the table's gradient to the backward pass."""
        if self.tiling.sweep == "fused":
            lse_T, grad_TD, of_table = self._fused()
        else:
            here_T, mean_TD, here_TB = softmax_mean(self.hidden_TD, self.classes_ND, self.tiling, self.matmul_dtype)
            lse_T = self._over_shards(here_T)
            grad_TD = mean_TD.mul_((self.weights_T * (here_T - lse_T).exp())[:, None])
            of_table = torch.zeros_like(self.table.weight)
            weights_TB = here_TB.sub_(lse_T[:, None]).exp_().mul_(self.weights_T[:, None])
            grad_ND = of_table[self.padding :]
            add_class_gradient(self.hidden_TD, self.classes_ND, weights_TB, self.tiling, self.matmul_dtype, grad_ND)
            self._add_targets(self.weights_T, of_table)
        target_TD = self.target_rows().to(self.matmul_dtype)  # rounded as in the mean, which may be the target alone
        grad_TD[self.here_T] -= self.weights_T[self.here_T, None] * target_TD
        return lse_T, self.target_logits(target_TD), grad_TD, of_table

    def _fused(self) -> tuple[Tensor, Tensor, AddGradient]:
        """The first kernel gives hidden's gradient, too: the softmax's mean of this rank's classes.

        The second one, for the table, runs late in the backward pass: the sums of the encoders' gradients over ranks
        run at the same time, and the table's gradient does not exist before.
        """
        from pnfrec_dist.losses import gpu_kernels  # only torch's GPU builds bring Triton

        width = self.hidden_TD.shape[1]
        here_T, mean_TW = gpu_kernels.softmax_mean(
            self._padded(self.hidden_TD), self._padded(self.classes_ND), bounds=self.bounds
        )
        lse_T = self._over_shards(here_T)

        def add(grad_total: Tensor, grad_SD: Tensor) -> None:
            weights_T = self.weights_T * grad_total
            hidden_TW, classes_NW = self._padded(self.hidden_TD), self._padded(self.classes_ND)
            gradient_ND = grad_SD[self.padding :]
            gpu_kernels.add_class_gradient(hidden_TW, classes_NW, weights_T, lse_T, gradient_ND, bounds=self.bounds)
            self._add_targets(weights_T, grad_SD)

        return lse_T, mean_TW[:, :width] * (self.weights_T * (here_T - lse_T).exp())[:, None], add

    def _padded(self, rows: Tensor) -> Tensor:
        """Rows that start at multiples of 32 bytes load as vectors."""
        return F.pad(rows.to(self.matmul_dtype), (0, -rows.shape[1] % 16))

    def _add_targets(self, weights_T: Tensor, grad_SD: Tensor) -> None:
        """The part of the gradient that the targets' own logits have."""
        rows_T = self.targets_T[self.here_T] - self.table.first_row
        weighted_TD = (self.hidden_TD[self.here_T] * -weights_T[self.here_T, None]).to(self.matmul_dtype)
        add_rows(grad_SD, rows_T, weighted_TD)

    def _over_shards(self, lse_T: Tensor) -> Tensor:
        """The log-sum-exp over all ranks' classes from each rank's own."""
        shards = self.table.shards
        if shards.size == 1:
            return lse_T
        return shards.gather_rows(lse_T[None], [1] * shards.size).logsumexp(dim=0)
