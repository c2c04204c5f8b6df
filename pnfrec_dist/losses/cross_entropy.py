"""Cross-entropy over the full catalog (paper, section 3.2).

T real targets, D width, N items.
"""

import torch
from torch import Tensor


def cross_entropy(hidden_TD: Tensor, classes_ND: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over targets of -log softmax(hidden . classes)[target], number of targets).

    targets_T: item ids 1..N; class j - 1 stands for item j.
    """
    logits_TN = hidden_TD @ classes_ND.T
    target_logit_T = logits_TN.gather(1, (targets_T - 1)[:, None])[:, 0]
    total = (logits_TN.logsumexp(dim=1) - target_logit_T).sum()
    return total, torch.tensor(len(targets_T), device=total.device)
