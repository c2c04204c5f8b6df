"""L = CE_p + alpha * CE_n + beta * L_c (paper, equation for the total loss), as totals and counts of one rank."""

import torch
from torch import Tensor

from pnfrec_dist.config import ContrastiveSettings, LossSettings
from pnfrec_dist.data.batch import IGNORE_INDEX, Sequences, TrainBatch
from pnfrec_dist.losses.contrastive import contrastive
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.schema import PAD_ID

TERMS = ("ce_positive", "ce_negative", "contrastive")


def term_weights(settings: LossSettings) -> Tensor:
    """Weight of each of TERMS in the loss, [3]."""
    return torch.tensor([1.0, settings.alpha, settings.beta])


def loss_totals(
    positive_BLD: Tensor,
    negative_BLD: Tensor | None,
    batch: TrainBatch,
    table: ItemTable,
    settings: ContrastiveSettings,
) -> tuple[Tensor, Tensor]:
    """(totals [3], counts [3]) of TERMS over this rank's users; a term that the model lacks is 0 of 0."""
    zero = positive_BLD.new_zeros(())
    terms = [_side(positive_BLD, batch.positive, table), (zero, zero), (zero, zero)]
    if negative_BLD is not None and batch.negative is not None:
        terms[1] = _side(negative_BLD, batch.negative, table)
    if batch.contrast_BN is not None:
        targets_BL = batch.positive.targets_BL
        is_pad_BL = targets_BL == IGNORE_INDEX
        next_BLD = table.lookup(targets_BL.masked_fill(is_pad_BL, PAD_ID))
        negatives_BND = table.lookup(batch.contrast_BN)
        terms[2] = contrastive(positive_BLD, next_BLD, is_pad_BL, negatives_BND, batch.contrast_BN, settings)
    totals, counts = zip(*terms, strict=True)
    return torch.stack(totals), torch.stack([count.to(zero.dtype) for count in counts])


def _side(hidden_BLD: Tensor, sequences: Sequences, table: ItemTable) -> tuple[Tensor, Tensor]:
    real_BL = sequences.targets_BL != IGNORE_INDEX
    return cross_entropy(hidden_BLD[real_BL], table.classes_ND, sequences.targets_BL[real_BL])
