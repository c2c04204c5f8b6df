"""L = CE_p + alpha * CE_n + beta * L_c (paper, equation for the total loss), as this rank's part of the global loss."""

from importlib.util import find_spec

import torch
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.batches import Sequences, TrainBatch
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.contrastive import contrastive
from pnfrec_dist.losses.cross_entropy import MAX_FUSED_WIDTH, Tiling, cross_entropy, plan_tiles
from pnfrec_dist.losses.sampled import gbce, sampled_softmax, sce
from pnfrec_dist.model.item_table import ItemTable, take

MATMUL_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
CPU_TILE_MIB, GPU_TILE_MIB = 8, 256
TERMS = ("ce_main", "ce_negative", "contrastive")


def term_weights(settings: LossSettings) -> Tensor:
    """Weight of each of TERMS in the loss, [3]."""
    return torch.tensor([1.0, settings.alpha, settings.beta], dtype=torch.float64)


def term_names(settings: EncoderSettings) -> tuple[str, str, str]:
    """What each of TERMS is called: ce_positive, or ce_all where the main encoder reads all interactions."""
    return f"ce_{settings.history}", *TERMS[1:]


def plan_softmax(settings: Settings, rows: int, items: int, *, on_gpu: bool) -> Tiling:
    """How the exact cross-entropy of rows x items logits is computed on this kind of device.

    Raises InputError when loss.exact_path is one that it cannot take.
    """
    loss = settings.loss
    fits = settings.train.precision == "bfloat16" and settings.encoder.hidden_size <= MAX_FUSED_WIDTH
    can_fuse = on_gpu and fits and find_spec("triton") is not None
    if loss.exact_path == "fused" and not can_fuse:
        narrow = f"train.precision bfloat16 and encoder.hidden_size <= {MAX_FUSED_WIDTH}"
        lacks = "GPU workers" if not on_gpu else "Triton, which torch brings for NVIDIA GPUs" if fits else narrow
        raise InputError(f"loss.exact_path is 'fused', which needs {lacks}; leave it at auto")
    tile_mib = loss.tile_mib or (GPU_TILE_MIB if on_gpu else CPU_TILE_MIB)
    return plan_tiles(rows, items, int(tile_mib * 2**20), loss.exact_path, on_cpu=not on_gpu, can_fuse=can_fuse)


def term_counts(batch: TrainBatch) -> Tensor:
    """Tokens behind each of TERMS in this batch, [3]: with a target, or compared; a term that the model lacks has 0."""
    main = len(batch.main.targets_T)
    negative = len(batch.negative.targets_T) if batch.negative is not None else 0
    return torch.tensor([main, negative, batch.contrast.num_tokens if batch.contrast is not None else 0])


def weighted_loss(
    hidden: tuple[Tensor, Tensor | None],
    vectors_UD: Tensor,
    batch: TrainBatch,
    table: ItemTable,
    weights: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """(sum over TERMS of weight * total, the totals [3] without gradient) over this rank's users.

    hidden: both sides' encoder outputs, [P, D]; vectors_UD: vectors of batch.items_U.
    weights: [3], what one target of each term adds to the loss: the term's weight over its count of all ranks. Positive
    and negative targets go through one sweep over the catalog.
    """
    main_PD, negative_PD = hidden
    sides = [(main_PD, batch.main)]
    if negative_PD is not None and batch.negative is not None:
        sides.append((negative_PD, batch.negative))
    hidden_TD = torch.cat([side_PD.index_select(0, side.places_T) for side_PD, side in sides])
    sizes = [len(side.targets_T) for _, side in sides]
    weights_T = torch.cat([weights[term].expand(size) for term, size in enumerate(sizes)])
    targets_T = torch.cat([side.targets_T for _, side in sides])
    loss, loss_T = _cross_entropy(
        hidden_TD, targets_T, weights_T, [side for _, side in sides], vectors_UD, batch, table, settings
    )
    totals = loss.new_zeros(3)
    for term, losses_T in enumerate(loss_T.split(sizes)):
        totals[term] = losses_T.sum()
    if batch.contrast is not None:
        next_P, negatives_BN = batch.contrast.next_P, batch.contrast.negatives_BN
        total = contrastive(
            main_PD,
            take(vectors_UD, next_P),
            next_P == PAD_ID,
            take(vectors_UD, negatives_BN),
            negatives_BN == PAD_ID,
            batch.main.groups,
            settings.contrastive,
        )
        totals[2] = total.detach()
        loss = loss + weights[2] * total
    return loss, totals


def _cross_entropy(
    hidden_TD: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    sides: list[Sequences],
    vectors_UD: Tensor,
    batch: TrainBatch,
    table: ItemTable,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) by settings.loss.cross_entropy."""
    kind = settings.loss.cross_entropy
    if kind == "exact":
        rows = table.shards.size * len(targets_T)
        tiling = plan_softmax(settings, rows, len(table.weight), on_gpu=hidden_TD.is_cuda)
        return cross_entropy(hidden_TD, table, targets_T, weights_T, tiling, MATMUL_DTYPES[settings.train.precision])
    if kind == "sce":
        return sce(hidden_TD, table, targets_T, weights_T, settings.sampled)
    places = [side.target_places_T for side in sides if side.target_places_T is not None]
    assert batch.sampled is not None and len(places) == len(sides)
    target_TD, sampled_KD = take(vectors_UD, torch.cat(places)), take(vectors_UD, batch.sampled.places_K)
    if kind == "sampled_softmax":
        return sampled_softmax(hidden_TD, target_TD, targets_T, sampled_KD, batch.sampled, weights_T)
    calibration = settings.sampled.gbce_calibration
    return gbce(hidden_TD, target_TD, targets_T, sampled_KD, batch.sampled, weights_T, table.num_items, calibration)
