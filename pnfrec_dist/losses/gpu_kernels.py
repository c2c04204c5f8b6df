"""The sweeps of the exact cross-entropy as two Triton kernels for a GPU, in bfloat16, with logits only in registers.

Both are deterministic: each program owns rows of the result and adds to them in a fixed order, without atomics. The
first kernel works like the forward pass of flash attention (Dao, 2023) with the classes as keys and as values, because
hidden's gradient needs the mean of the classes under the softmax. The second works like the gradient of the values.
T rows of hidden, N classes, D width, S splits; a tile has t rows and n classes; W is D rounded up to a power of two.
"""

# pyright: reportArgumentType=false
# (Triton's stubs expect constexpr, but calls pass numbers.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnfrec_dist.losses.tiling import fewest_splits, kernel_tile, programs_at_once

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


def softmax_mean(
    hidden_TD: Tensor, classes_ND: Tensor, splits: int | None = None, bounds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(log of the sum over classes of exp(hidden . class) [T], the classes' mean under that softmax [T, D]), float32.

    Both inputs have the same narrow dtype, for the GPU's tensor cores; sums are in float32. splits: parts of the
    classes that separate programs process (default: enough to fill the GPU). The results of all splits exist at the
    same time. bounds: [2], the rows of hidden from which and before which results are needed; tiles of other rows are
    left out, and their means are 0.
    """
    (targets, width), num_classes = hidden_TD.shape, len(classes_ND)
    tile_t, tile_n, tile_w, launch = kernel_tile(width)
    row_blocks = _parts(targets, tile_t)
    splits = splits or _splits(row_blocks, _parts(num_classes, tile_n), hidden_TD)
    lse_ST = hidden_TD.new_empty((splits, targets), dtype=torch.float32)
    mean_STD = hidden_TD.new_empty((splits, targets, width), dtype=torch.float32)
    per_split = _parts(_parts(num_classes, splits), tile_n) * tile_n
    if targets:
        _softmax_mean[(row_blocks, splits)](
            hidden_TD, classes_ND, lse_ST, mean_STD, _bounds(bounds, hidden_TD), targets, num_classes, per_split,
            has_bounds=bounds is not None, width=width, tile_t=tile_t, tile_n=tile_n, tile_w=tile_w, **launch,
        )  # fmt: skip
    if splits == 1:
        return lse_ST[0], mean_STD[0]
    lse_T = lse_ST.logsumexp(dim=0)
    return lse_T, mean_STD.mul_((lse_ST - lse_T).exp_()[:, :, None]).sum(0)


def add_class_gradient(
    hidden_TD: Tensor,
    classes_ND: Tensor,
    weights_T: Tensor,
    lse_T: Tensor,
    grad_classes_ND: Tensor,
    splits: int | None = None,
    bounds: Tensor | None = None,
) -> None:
    """grad_classes += the gradient of sum(weight * lse) with respect to the classes. No weight is negative.

    hidden and classes are as in softmax_mean; weights, lse and the gradient are in float32. The gradient may have fewer
    columns than the classes; the last columns of the classes are then padding. splits: parts of the rows of hidden.
    bounds: as in softmax_mean, of rows with a weight.
    """
    (targets, width), num_classes = hidden_TD.shape, len(classes_ND)
    tile_n, tile_t, tile_w, launch = kernel_tile(width)
    class_blocks = _parts(num_classes, tile_n)
    splits = splits or _splits(class_blocks, _parts(targets, tile_t), hidden_TD)
    if not targets or not num_classes:
        return
    part_SND = grad_classes_ND[None] if splits == 1 else grad_classes_ND.new_zeros(splits, *grad_classes_ND.shape)
    per_split = _parts(_parts(targets, splits), tile_t) * tile_t
    log2_T = lse_T * LOG2_E.value - weights_T.log2()  # softmax * weight = exp2(logit * log2 e - this)
    _add_class_gradient[(class_blocks, splits)](
        hidden_TD, classes_ND, log2_T, part_SND, _bounds(bounds, hidden_TD), targets, num_classes, per_split,
        has_bounds=bounds is not None, width=width, grad_width=grad_classes_ND.shape[1],
        tile_t=tile_t, tile_n=tile_n, tile_w=tile_w, **launch,
    )  # fmt: skip
    if splits > 1:
        grad_classes_ND += part_SND.sum(dim=0)


def _bounds(bounds: Tensor | None, like: Tensor) -> Tensor:
    """A kernel takes no None; it does not read this then."""
    return like if bounds is None else bounds


def _parts(length: int, size: int) -> int:
    return -(-length // size)


def _splits(blocks: int, longest: int, like: Tensor) -> int:
    """How many programs share the work of a block of rows."""
    if not like.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(like.device).multi_processor_count
    return fewest_splits(blocks, longest, processors * programs_at_once(like.shape[1]))


@triton.jit
def _rows(
    start_ptr, first, end, width: tl.constexpr, rows: tl.constexpr, tile_w: tl.constexpr, is_whole: tl.constexpr = False
):  # fmt: skip
    """[rows, tile_w], starting at row `first`; 0 from row `end` on and beyond the width. is_whole: no row is beyond."""
    at_r = first + tl.arange(0, rows)
    at_w = tl.arange(0, tile_w)
    place = start_ptr + at_r.to(tl.int64)[:, None] * width + at_w[None, :]
    if is_whole and width == tile_w:
        return tl.load(place)
    inside = (at_w < width)[None, :] if is_whole else (at_r < end)[:, None] & (at_w < width)[None, :]
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
def _add_tile(
    hidden_tW, classes_nW, max_t, sum_t, mean_tW, left, tile_n: tl.constexpr, is_whole: tl.constexpr
):  # fmt: skip
    """The running maximum (times log2 e), sum and mean after these classes, of which the first `left` are real."""
    logits_tn = tl.dot(hidden_tW, tl.trans(classes_nW))
    if not is_whole:
        logits_tn = tl.where((tl.arange(0, tile_n) < left)[None, :], logits_tn, float("-inf"))
    new_t = tl.maximum(max_t, tl.max(logits_tn, 1) * LOG2_E)
    exp_tn = tl.exp2(logits_tn * LOG2_E - new_t[:, None])  # one instruction multiplies and subtracts
    shrink_t = tl.exp2(max_t - new_t)
    mean_tW = tl.dot(exp_tn.to(classes_nW.dtype), classes_nW, mean_tW * shrink_t[:, None])
    return new_t, sum_t * shrink_t + tl.sum(exp_tn, 1), mean_tW


@triton.jit
def _softmax_mean(
    hidden_ptr, classes_ptr, lse_ptr, mean_ptr, bounds_ptr, targets, num_classes, per_split, has_bounds: tl.constexpr,
    width: tl.constexpr, tile_t: tl.constexpr, tile_n: tl.constexpr, tile_w: tl.constexpr,
):  # fmt: skip
    """One block of rows over the classes of one split; with base-2 exponentials, rescaled when a maximum rises."""
    first_t = tl.program_id(0) * tile_t
    first_n = tl.program_id(1) * per_split
    end_n = tl.minimum(first_n + per_split, num_classes)
    if has_bounds:
        is_needed = (first_t + tile_t > tl.load(bounds_ptr)) & (first_t < tl.load(bounds_ptr + 1))
        end_n = tl.where(is_needed, end_n, first_n)
    hidden_tW = _rows(hidden_ptr, first_t, targets, width, tile_t, tile_w)
    max_t = tl.full([tile_t], float("-inf"), tl.float32)
    sum_t = tl.zeros([tile_t], tl.float32)
    mean_tW = tl.zeros([tile_t, tile_w], tl.float32)
    end_whole = first_n + tl.maximum(end_n - first_n, 0) // tile_n * tile_n
    for start_n in range(first_n, end_whole, tile_n):
        classes_nW = _rows(classes_ptr, start_n, end_n, width, tile_n, tile_w, is_whole=True)
        max_t, sum_t, mean_tW = _add_tile(hidden_tW, classes_nW, max_t, sum_t, mean_tW, tile_n, tile_n, True)
    if end_whole < end_n:
        classes_nW = _rows(classes_ptr, end_whole, end_n, width, tile_n, tile_w)
        left = end_n - end_whole
        max_t, sum_t, mean_tW = _add_tile(hidden_tW, classes_nW, max_t, sum_t, mean_tW, left, tile_n, False)
    at_t = (first_t + tl.arange(0, tile_t)).to(tl.int64)
    at_w = tl.arange(0, tile_w)
    place_t = tl.program_id(1).to(tl.int64) * targets + at_t
    lse_t = (max_t + tl.log2(sum_t)) * LN_2
    if has_bounds:
        lse_t = tl.where(is_needed, lse_t, 0.0)
    tl.store(lse_ptr + place_t, lse_t, mask=at_t < targets)
    inside = (at_t < targets)[:, None] & (at_w < width)[None, :]
    mean_tW = tl.where(sum_t[:, None] > 0, mean_tW / sum_t[:, None], 0.0)
    tl.store(mean_ptr + place_t[:, None] * width + at_w[None, :], mean_tW, mask=inside)


@triton.jit
def _add_class_gradient(
    hidden_ptr, classes_ptr, log2_ptr, grad_ptr, bounds_ptr, targets, num_classes, per_split,
    has_bounds: tl.constexpr, width: tl.constexpr, grad_width: tl.constexpr,
    tile_t: tl.constexpr, tile_n: tl.constexpr, tile_w: tl.constexpr,
):  # fmt: skip
    """One block of classes over the rows of hidden of one split."""
    first_n = tl.program_id(0) * tile_n
    first_t = tl.program_id(1) * per_split
    end_t = tl.minimum(first_t + per_split, targets)
    if has_bounds:
        first_t = tl.maximum(first_t, tl.load(bounds_ptr).to(tl.int32) // tile_t * tile_t)
        end_t = tl.minimum(end_t, tl.load(bounds_ptr + 1).to(tl.int32))
    classes_nW = _rows(classes_ptr, first_n, num_classes, width, tile_n, tile_w)
    grad_nW = tl.zeros([tile_n, tile_w], tl.float32)
    for number in range(first_t // tile_t, tl.cdiv(end_t, tile_t)):  # starts are seen to be multiples
        start_t = number * tile_t
        hidden_tW = _rows(hidden_ptr, start_t, end_t, width, tile_t, tile_w)
        at_t = start_t + tl.arange(0, tile_t)
        log2_t = tl.load(log2_ptr + at_t, mask=at_t < end_t, other=float("inf"))
        logits_nt = tl.dot(classes_nW, tl.trans(hidden_tW))
        softmax_nt = tl.exp2(logits_nt * LOG2_E - log2_t[None, :])  # times the weight
        grad_nW = tl.dot(softmax_nt.to(hidden_tW.dtype), hidden_tW, grad_nW)
    at_n = (first_n + tl.arange(0, tile_n)).to(tl.int64)
    at_w = tl.arange(0, tile_w)
    place_nW = (tl.program_id(1).to(tl.int64) * num_classes + at_n)[:, None] * grad_width + at_w[None, :]
    inside = (at_n < num_classes)[:, None] & (at_w < grad_width)[None, :]
    tl.store(grad_ptr + place_nW, tl.load(grad_ptr + place_nW, mask=inside, other=0.0) + grad_nW, mask=inside)
