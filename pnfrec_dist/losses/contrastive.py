"""The contrastive term between a user's positives and negatives (paper, section 3.2).

B users, L positions, T real targets, N negatives of a user, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.config import ContrastiveSettings
from pnfrec_dist.schema import PAD_ID


def contrastive(
    hidden_BLD: Tensor,
    next_BLD: Tensor,
    is_pad_BL: Tensor,
    negatives_BND: Tensor,
    contrast_BN: Tensor,
    settings: ContrastiveSettings,
) -> tuple[Tensor, Tensor]:
    """(sum over positive positions of -log softmax([f(h_t, i_t+1), f(h_t, j) for j in S^n])[0], their number).

    hidden_BLD: the positive encoder's output; next_BLD: vectors of the next positives; is_pad_BL: True where there
    is none; negatives_BND: vectors of contrast_BN, the users' negative items (PAD_ID: none). f is cosine or dot,
    over temperature.
    A user without negatives adds 0 to the total and its positions to the number.
    """
    if settings.similarity == "cosine":
        hidden_BLD, next_BLD, negatives_BND = (F.normalize(t, dim=-1) for t in (hidden_BLD, next_BLD, negatives_BND))
    to_next_BL = (hidden_BLD * next_BLD).sum(-1) / settings.temperature
    to_negatives_BLN = hidden_BLD @ negatives_BND.transpose(1, 2) / settings.temperature
    to_negatives_BLN = to_negatives_BLN.masked_fill((contrast_BN == PAD_ID)[:, None, :], -torch.inf)
    all_BL = torch.cat([to_next_BL[:, :, None], to_negatives_BLN], dim=2).logsumexp(dim=2)
    total = (all_BL - to_next_BL).masked_fill(is_pad_BL, 0.0).sum()
    return total, (~is_pad_BL).sum()
