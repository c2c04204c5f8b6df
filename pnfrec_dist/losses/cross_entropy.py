"""Exact cross-entropy over the full catalog, without its logits in memory (paper, section 3.2).

T real targets, D width, V = N + 1 rows of the item table (row 0 is padding, not a class), S of them on this rank, N
items; t rows and n items make one tile of logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pnfrec_dist.config.settings import ExactPath
from pnfrec_dist.distributed import World
from pnfrec_dist.model.item_table import ItemTable, add_rows

MIN_CHUNK_ROWS, GPU_MIN_CHUNK_ROWS = 32, 1024
"""With fewer rows in a chunk, memory limits the matmuls, and two sweeps over tiles are as fast."""
TILE_ROWS = 512
CACHED_TILE_BYTES = 1 << 20
"""A CPU's tile fits into its second-level cache, where exp, maxima and sums cost a third."""
MAX_FUSED_WIDTH = 256
"""Wider rows do not fit into a GPU's registers together with a tile."""


@dataclass(frozen=True)
class Tiling:
    """Logits are computed `rows` x `items` at a time. Tiles that span the catalog need one sweep, others two."""

    rows: int
    items: int
    sweep: Literal["one", "two", "fused"]


def plan_tiles(
    rows: int, items: int, tile_bytes: int, path: ExactPath = "auto", *, on_cpu: bool = True, can_fuse: bool = False
) -> Tiling:
    """How `rows` x `items` float32 logits are cut into tiles of at most tile_bytes (materialised: of any size).

    materialised: one tile. chunked: the whole catalog for some rows, three matmuls. tiled: some items for many rows;
    the softmax needs the sum over items first, so there are two sweeps with four matmuls. fused: as tiled, with kernels
    that keep tiles in registers. auto: the first of materialised, fused (if can_fuse), chunked and tiled that fits; a
    chunk must have at least MIN_CHUNK_ROWS (on a GPU GPU_MIN_CHUNK_ROWS) rows.
    """
    rows, items = max(rows, 1), max(items, 1)
    room = max(tile_bytes // 4, 1)
    chunk_rows = min(rows, max(room // items, 1))
    if path == "auto":
        without = "chunked" if chunk_rows >= (MIN_CHUNK_ROWS if on_cpu else GPU_MIN_CHUNK_ROWS) else "tiled"
        path = "materialised" if rows * items <= room else "fused" if can_fuse else without
    if path == "materialised":
        return Tiling(rows, items, "one")
    if path == "chunked":
        return Tiling(chunk_rows, items, "one")
    if on_cpu:
        room = min(room, CACHED_TILE_BYTES // 4)
    tile_rows = min(rows, room, TILE_ROWS if on_cpu else 8 * TILE_ROWS)
    return Tiling(tile_rows, min(items, max(room // tile_rows, 1)), "fused" if path == "fused" else "two")


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
            target_logit_T[here_T] = _dot(all_TD[here_T].to(matmul_dtype), target_TD.to(matmul_dtype), wide)
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
                lse_T = log_sum_exp(all_TD, classes_ND, tiling, matmul_dtype, shards)
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


def log_sum_exp(
    hidden_TD: Tensor, classes_ND: Tensor, tiling: Tiling, matmul_dtype: torch.dtype, shards: World
) -> Tensor:
    """log of the sum of exp(hidden . class) over all ranks' classes, [T], tile by tile."""
    max_T1 = hidden_TD.new_full((len(hidden_TD), 1), -torch.inf)
    sum_T1 = torch.zeros_like(max_T1)
    logits = _Logits(hidden_TD, tiling)
    for rows in blocks(len(hidden_TD), tiling.rows):
        narrow_tD = hidden_TD[rows].to(matmul_dtype)
        max_t1, sum_t1 = max_T1[rows], sum_T1[rows]
        for items in blocks(len(classes_ND), tiling.items):
            logits_tn = logits(narrow_tD, classes_ND[items].to(matmul_dtype))
            new_t1 = torch.maximum(max_t1, logits_tn.amax(dim=1, keepdim=True))
            sum_t1.mul_((max_t1 - new_t1).exp_()).add_(logits_tn.sub_(new_t1).exp_().sum(dim=1, keepdim=True))
            max_t1.copy_(new_t1)
    return _over_shards((max_T1 + sum_T1.log())[:, 0], shards)


def add_softmax_gradient(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_T: Tensor,
    lse_T: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
) -> Tensor:
    """The gradient of sum(weight * lse) with respect to hidden, [T, D]. The classes' gradient is added in place."""
    grad_TD = torch.zeros_like(hidden_TD)
    logits = _Logits(hidden_TD, tiling)
    for rows in blocks(len(hidden_TD), tiling.rows):
        narrow_tD = hidden_TD[rows].to(matmul_dtype)
        weighted_tD = (hidden_TD[rows] * weights_T[rows, None]).to(matmul_dtype)
        for items in blocks(len(classes_ND), tiling.items):
            classes_nD = classes_ND[items].to(matmul_dtype)
            softmax_tn = logits(narrow_tD, classes_nD).sub_(lse_T[rows, None]).exp_().to(matmul_dtype)
            _add_product(grad_TD[rows], softmax_tn, classes_nD)
            _add_product(grad_classes_ND[items], softmax_tn.T, weighted_tD)
    return grad_TD.mul_(weights_T[:, None])


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
    lse_T = log_sum_exp(hidden_TD, classes_ND, tiling, matmul_dtype, shards)
    grad_TD = add_softmax_gradient(hidden_TD, classes_ND, weights_T, lse_T, tiling, matmul_dtype, grad_classes_ND)
    return lse_T, grad_TD


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
    from pnfrec_dist.losses.gpu_kernels import (  # only torch's GPU builds bring Triton
        add_class_gradient,
        softmax_mean,
    )

    padding = -hidden_TD.shape[1] % 16  # rows that start at multiples of 32 bytes load as vectors
    hidden_TW, classes_NW = (F.pad(rows.to(matmul_dtype), (0, padding)) for rows in (hidden_TD, classes_ND))
    here_T, mean_TW = softmax_mean(hidden_TW, classes_NW)
    lse_T = _over_shards(here_T, shards)
    add_class_gradient(hidden_TW, classes_NW, weights_T, lse_T, grad_classes_ND)
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
    lse_T, grad_TD = torch.empty_like(weights_T), torch.empty_like(hidden_TD)
    narrow_ND = classes_ND.to(matmul_dtype)
    logits = _Logits(hidden_TD, tiling)
    for rows in blocks(len(hidden_TD), tiling.rows):
        logits_tN = logits(hidden_TD[rows].to(matmul_dtype), narrow_ND)
        max_t1 = logits_tN.amax(dim=1, keepdim=True)
        exp_tN = logits_tN.sub_(max_t1).exp_()
        sum_t1 = exp_tN.sum(dim=1, keepdim=True)
        lse_T[rows] = (max_t1 + sum_t1.log())[:, 0]
        scale_t1 = weights_T[rows, None] / sum_t1
        narrow_tN = exp_tN.to(matmul_dtype)
        grad_TD[rows] = _product(narrow_tN, narrow_ND, hidden_TD.dtype)
        grad_TD[rows] *= scale_t1
        _add_product(grad_classes_ND, narrow_tN.T, (hidden_TD[rows] * scale_t1).to(matmul_dtype))
    return lse_T, grad_TD


def blocks(length: int, size: int) -> Iterator[slice]:
    """0..length in slices of `size`; the last one may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


class _Logits:
    """Products of hidden states and classes, one tile after another in the same memory."""

    def __init__(self, like: Tensor, tiling: Tiling) -> None:
        self.buffer = like.new_empty(min(tiling.rows, len(like)) * tiling.items)

    def __call__(self, hidden_tD: Tensor, classes_nD: Tensor) -> Tensor:
        """[t, n] in the buffer's dtype; valid until the next call."""
        out_tn = self.buffer[: len(hidden_tD) * len(classes_nD)].view(len(hidden_tD), len(classes_nD))
        if hidden_tD.dtype == out_tn.dtype:
            return torch.mm(hidden_tD, classes_nD.T, out=out_tn)
        return out_tn.copy_(_product(hidden_tD, classes_nD.T, out_tn.dtype))


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`. With narrower inputs, a GPU keeps its wide sums, and a CPU rounds them once."""
    if a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def _dot(a_TD: Tensor, b_TD: Tensor, dtype: torch.dtype) -> Tensor:
    """Dot products of rows, rounded as _product rounds, so that a target with probability 1 has loss 0."""
    dot_T = (a_TD.to(dtype) * b_TD.to(dtype)).sum(1)
    return dot_T if a_TD.is_cuda else dot_T.to(a_TD.dtype).to(dtype)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += _product(a, b, out.dtype)
