"""Sweeps over tiles of logits: the softmax over the catalog, and its gradients, without all logits in memory.

T real targets, D width, N classes, B blocks of classes; t rows and n classes make one tile of logits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.losses.tiling import ROW_MULTIPLE, Tiling

FIRST_CLASSES = 32
"""Classes of a tile whose probabilities tell its log-sum-exp on a CPU."""
CLASS_MULTIPLE = 32
"""Tiles with all classes are padded to this multiple: with AMX in bfloat16, the matmuls are 1.1 to 1.5 times faster."""
LEAST_SHARE = 1e-30
"""With a smaller sum of these probabilities, the log-sum-exp is computed from the row's logits."""


def one_sweep(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp [T], logits of the targets [T], the gradient of the loss with respect to hidden [T, D]).

    The loss is sum(weight * (lse - logit of the target)); targets_T: their classes, from 0. The classes' gradient is
    added in place. Tiles have all classes.
    """
    lse_T, logit_T, grad_TD = torch.empty_like(weights_T), torch.empty_like(weights_T), torch.empty_like(hidden_TD)
    num_classes, rows_at_a_time = len(classes_ND), max(min(tiling.rows, len(hidden_TD)), 1)
    narrow_ND = F.pad(classes_ND.to(matmul_dtype), (0, 0, 0, -num_classes % CLASS_MULTIPLE))
    tile = _Tile(hidden_TD, rows_at_a_time * len(narrow_ND), matmul_dtype)
    is_narrow = matmul_dtype != grad_classes_ND.dtype  # then a sum of transposed gradients is faster
    grad_DN = grad_classes_ND.new_zeros(narrow_ND.T.shape if is_narrow else 0)
    for rows in blocks(len(hidden_TD), rows_at_a_time):
        size = rows.stop - rows.start
        missing = (0, 0, 0, min(size + -size % ROW_MULTIPLE, rows_at_a_time) - size)
        logits_tN = tile.logits(F.pad(hidden_TD[rows].to(matmul_dtype), missing), narrow_ND, num_classes)
        target_t = (torch.arange(size, device=logits_tN.device), targets_T[rows])
        logit_T[rows] = logits_tN[target_t].to(logit_T.dtype)
        softmax_tN, lse_t = tile.softmax_and_lse()
        lse_T[rows] = lse_t[:size]
        softmax_tN[target_t] -= 1.0  # torch's scatter functions copy a bfloat16 tile on a CPU
        grad_TD[rows] = _product(softmax_tN, narrow_ND, hidden_TD.dtype)[:size]
        weighted_tD = F.pad((hidden_TD[rows] * weights_T[rows, None]).to(matmul_dtype), missing)
        if is_narrow:
            _add_product(grad_DN, weighted_tD.T, softmax_tN)
        else:
            _add_product(grad_classes_ND, softmax_tN[:, :num_classes].T, weighted_tD)
    if is_narrow:
        grad_classes_ND += grad_DN.T[:num_classes]
    return lse_T, logit_T, grad_TD.mul_(weights_T[:, None])


def softmax_mean(
    hidden_TD: Tensor, classes_ND: Tensor, tiling: Tiling, matmul_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp over the classes [T], the classes' mean under that softmax [T, D], the blocks' log-sum-exp [T, B]).

    The mean is the gradient of lse with respect to hidden. Blocks are combined as in flash attention (Dao, 2023).
    """
    starts = range(0, len(classes_ND), tiling.items)
    lse_T1 = hidden_TD.new_full((len(hidden_TD), 1), -torch.inf)
    mean_TD, lse_TB = torch.zeros_like(hidden_TD), hidden_TD.new_empty(len(hidden_TD), len(starts))
    tile = _Tile(hidden_TD, min(tiling.rows, len(hidden_TD)) * tiling.items, matmul_dtype)
    for rows in blocks(len(hidden_TD), tiling.rows):
        narrow_tD, lse_t1, mean_tD = hidden_TD[rows].to(matmul_dtype), lse_T1[rows], mean_TD[rows]
        for block, items in enumerate(blocks(len(classes_ND), tiling.items)):
            classes_nD = classes_ND[items].to(matmul_dtype)
            tile.logits(narrow_tD, classes_nD)
            softmax_tn, block_t = tile.softmax_and_lse()
            new_t1 = torch.logaddexp(lse_t1, block_t[:, None])
            product_tD = _product(softmax_tn, classes_nD, mean_tD.dtype)
            mean_tD.mul_((lse_t1 - new_t1).exp_()).addcmul_(product_tD, (block_t[:, None] - new_t1).exp_())
            lse_t1.copy_(new_t1)
            lse_TB[rows, block] = block_t
    return lse_T1[:, 0], mean_TD, lse_TB


def add_class_gradient(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_TB: Tensor,
    tiling: Tiling,
    matmul_dtype: torch.dtype,
    grad_classes_ND: Tensor,
) -> None:
    """grad_classes += the gradient of sum over rows and blocks of weight * the block's log-sum-exp.

    With weights of weight_T * exp(lse_TB - lse_T), this is the gradient of sum(weight_T * lse_T).
    """
    tile = _Tile(hidden_TD, min(tiling.rows, len(hidden_TD)) * tiling.items, matmul_dtype)
    for rows in blocks(len(hidden_TD), tiling.rows):
        narrow_tD = hidden_TD[rows].to(matmul_dtype)
        for block, items in enumerate(blocks(len(classes_ND), tiling.items)):
            tile.logits(narrow_tD, classes_ND[items].to(matmul_dtype))
            softmax_tn = tile.softmax()
            weighted_tD = (hidden_TD[rows] * weights_TB[rows, block, None]).to(matmul_dtype)
            _add_product(grad_classes_ND[items], softmax_tn.T, weighted_tD)


def log_sum_exp(hidden_TD: Tensor, classes_ND: Tensor, tiling: Tiling, matmul_dtype: torch.dtype) -> Tensor:
    """log of the sum of exp(hidden . class) over the classes, [T]."""
    lse_T = hidden_TD.new_full((len(hidden_TD),), -torch.inf)
    tile = _Tile(hidden_TD, min(tiling.rows, len(hidden_TD)) * tiling.items, matmul_dtype)
    for rows in blocks(len(hidden_TD), tiling.rows):
        narrow_tD = hidden_TD[rows].to(matmul_dtype)
        for items in blocks(len(classes_ND), tiling.items):
            tile.logits(narrow_tD, classes_ND[items].to(matmul_dtype))
            _, block_t = tile.softmax_and_lse()
            lse_T[rows] = torch.logaddexp(lse_T[rows], block_t)
    return lse_T


def blocks(length: int, size: int) -> Iterator[slice]:
    """0..length in slices of `size`; the last one may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def dot(a_TD: Tensor, b_TD: Tensor, dtype: torch.dtype) -> Tensor:
    """Dot products of rows, rounded as logits are, so that a target with probability 1 has loss 0."""
    dot_T = (a_TD.to(dtype) * b_TD.to(dtype)).sum(1)
    return dot_T.to(logit_dtype(a_TD.dtype, dtype, on_cpu=not a_TD.is_cuda)).to(dtype)


def logit_dtype(matmul_dtype: torch.dtype, wide: torch.dtype, *, on_cpu: bool) -> torch.dtype:
    """The dtype of logits. With narrow inputs, a GPU keeps its wide sums, and a CPU rounds them once."""
    return matmul_dtype if on_cpu else wide


class _Tile:
    """One tile of logits after another, and its softmax, in the same memory."""

    def __init__(self, like: Tensor, logits: int, matmul_dtype: torch.dtype) -> None:
        dtype = logit_dtype(matmul_dtype, like.dtype, on_cpu=not like.is_cuda)
        self.buffer = like.new_empty(logits, dtype=dtype)
        self.wide = like.dtype

    def logits(self, hidden_tD: Tensor, classes_nD: Tensor, num_classes: int | None = None) -> Tensor:
        """Those of the next tile, [t, n], until its softmax takes their place.

        num_classes: rows of classes_nD that are classes; the others, at the end, get the logit -inf.
        """
        self.hidden_tD, self.classes_nD = hidden_tD, classes_nD[:num_classes]
        self.out_tn = self.buffer[: len(hidden_tD) * len(classes_nD)].view(len(hidden_tD), len(classes_nD))
        if hidden_tD.dtype == self.out_tn.dtype:
            torch.mm(hidden_tD, classes_nD.T, out=self.out_tn)
        else:
            self.out_tn.copy_(_product(hidden_tD, classes_nD.T, self.out_tn.dtype))
        if num_classes is not None:
            self.out_tn[:, num_classes:] = -torch.inf
        return self.out_tn

    def softmax(self) -> Tensor:
        """[t, n], in the dtype of the matmuls."""
        return torch.softmax(self.out_tn, 1, out=self.out_tn).to(self.hidden_tD.dtype)

    def softmax_and_lse(self) -> tuple[Tensor, Tensor]:
        """(softmax [t, n], in the dtype of the matmuls; log-sum-exp of the tile [t], in the wide dtype).

        The log-sum-exp is a logit minus the log of its probability. On a GPU, the largest one is taken. On a CPU, a
        second pass over the logits costs as much as the softmax. So there, a few classes tell it: the log-sum-exp of
        their logits, minus the log of their probabilities' sum.
        """
        if self.out_tn.is_cuda:
            largest_t1, place_t1 = self.out_tn.max(dim=1, keepdim=True)
            torch.softmax(self.out_tn, 1, out=self.out_tn)
            lse_t = (largest_t1 - self.out_tn.gather(1, place_t1).log())[:, 0]
            return self.out_tn.to(self.hidden_tD.dtype), lse_t
        first_t = self.out_tn[:, :FIRST_CLASSES].to(self.wide).logsumexp(dim=1)
        softmax_tn = self.softmax()
        share_t = softmax_tn[:, :FIRST_CLASSES].sum(dim=1, dtype=self.wide)
        lse_t = first_t - share_t.log()
        rare_t = (~(share_t >= LEAST_SHARE)).nonzero()[:, 0]
        if len(rare_t):
            lse_t[rare_t] = (self.hidden_tD[rare_t] @ self.classes_nD.T).to(self.wide).logsumexp(dim=1)
        return softmax_tn, lse_t


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`. With narrower inputs, a GPU keeps its wide sums, and a CPU rounds them once."""
    if a.dtype != dtype and a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += _product(a, b, out.dtype) if a.is_cuda else a @ b  # without a copy in the dtype of `out`
