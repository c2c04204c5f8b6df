"""The contrastive term between a user's positives and negatives (paper, section 3.2).

P tokens of all users, g those of one group, G its users, L its length; B users, N negatives of a user, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.config.settings import ContrastiveSettings, EncoderSettings, Settings
from pnfrec_dist.data.batches import BatchParts, Groups, TrainBatch
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.losses.terms import DirectTerm, StepTensors
from pnfrec_dist.model.item_table import take

NORM_EPS = 1e-12
"""Least norm of a cosine, as in F.normalize."""


class ContrastiveTerm(DirectTerm):
    """L_c, over all positive tokens that have a next positive item."""

    needs = BatchParts(contrast=True)
    is_recordable = True

    def name(self, encoder: EncoderSettings) -> str:
        return "contrastive"

    def title(self, encoder: EncoderSettings) -> str:
        return "contrastive term"

    def count(self, batch: TrainBatch) -> int | Tensor:
        assert batch.contrast is not None
        return batch.contrast.num_tokens

    def total(self, tensors: StepTensors, settings: Settings) -> Tensor:
        batch = tensors.batch
        assert batch.contrast is not None
        next_P, negatives_BN = batch.contrast.next_P, batch.contrast.negatives_BN
        own = slice(-settings.encoder.hidden_size, None)  # with history both, the main encoder's half
        main_PD, vectors_UD = tensors.main_PD[:, own], tensors.vectors_UD[:, own]
        return contrastive(main_PD, vectors_UD, next_P, negatives_BN, batch.main.groups, settings.contrastive)


CONTRASTIVE = ContrastiveTerm()


def contrastive(
    hidden_PD: Tensor,
    vectors_UD: Tensor,
    next_P: Tensor,
    negatives_BN: Tensor,
    groups: Groups,
    settings: ContrastiveSettings,
) -> Tensor:
    """Sum over positive positions of -log softmax([f(h_t, i_t+1), f(h_t, j) for j in S^n])[0].

    hidden_PD: the main encoder's output; vectors_UD: vectors of the batch's items; next_P: place among them of the next
    positive, PAD_ID if there is none; negatives_BN: places of the users' negatives, padded with PAD_ID; groups: how
    tokens belong to users. f is cosine or dot, divided by temperature. A user without negatives adds 0.
    """
    scale_P1 = torch.full_like(
        hidden_PD[:, :1], 1 / settings.temperature, dtype=torch.promote_types(hidden_PD.dtype, torch.float32)
    )
    if settings.similarity == "cosine":  # of U vectors and P norms, not of all tokens' vectors
        vectors_UD = F.normalize(vectors_UD, dim=-1)
        scale_P1 = scale_P1 / torch.linalg.vector_norm(hidden_PD, dim=-1, keepdim=True, dtype=scale_P1.dtype).clamp(
            min=NORM_EPS
        )
    vectors_UD = vectors_UD.to(hidden_PD.dtype)  # before they are taken: U is less than P
    to_next_P = (hidden_PD * take(vectors_UD, next_P)).sum(-1, dtype=scale_P1.dtype) * scale_P1[:, 0]
    negatives_BND, is_pad_BN, is_pad_P = take(vectors_UD, negatives_BN), negatives_BN == PAD_ID, next_P == PAD_ID
    tokens, users = [users * length for users, length in groups], [users for users, _ in groups]
    by_group = (t.split(tokens) for t in (hidden_PD, scale_P1, to_next_P, is_pad_P))
    by_user = (t.split(users) for t in (negatives_BND, is_pad_BN))
    total = to_next_P.new_zeros(())
    for group, hidden_gD, scale_g1, next_g, is_pad_g, negatives_GND, is_pad_GN in zip(
        groups, *by_group, *by_user, strict=True
    ):
        to_negatives_GLN = _products(hidden_gD.unflatten(0, group), negatives_GND) * scale_g1.view(*group, 1)
        to_negatives_GLN = to_negatives_GLN.masked_fill(is_pad_GN[:, None, :], -torch.inf)
        to_next_GL1 = next_g.view(*group, 1)
        loss_GL = torch.cat([to_next_GL1, to_negatives_GLN], dim=2).logsumexp(dim=2) - to_next_GL1[:, :, 0]
        total = total + loss_GL.masked_fill(is_pad_g.view(group), 0.0).sum()
    return total


def _products(hidden_GLD: Tensor, negatives_GND: Tensor) -> Tensor:
    """Dot products, [G, L, N]; on a CPU in float32, as in attention (model/sasrec_block.py)."""
    if hidden_GLD.is_cuda:
        return hidden_GLD @ negatives_GND.transpose(1, 2)
    wide = torch.promote_types(hidden_GLD.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return hidden_GLD.to(wide) @ negatives_GND.to(wide).transpose(1, 2)
