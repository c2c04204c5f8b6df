"""Softmax over sampled items instead of the catalog, if exact is too slow (compared in docs/losses.md).

T real targets, t those of a chunk, D width, K sampled items.
"""

import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.losses.catalog_loss import Targets
from pnfrec_dist.losses.chunks import SampledItemsLoss, in_chunks, wide
from pnfrec_dist.model.item_table import ItemTable


class SampledSoftmax(SampledItemsLoss):
    """The softmax with its sum over items estimated from a sample, which all targets of a step share.

    loss = log(exp(s_t) + sum_{j in sample, j != t} exp(s_j - log_expected_j)) - s_t, s = hidden . item. Each sampled
    item represents 1 / (its expected count) items, so the estimate of the sum is unbiased (Bengio and Senecal, IEEE TNN
    2008). The target is always included, not drawn, so its score gets no correction (Khrylchenko et al., RecSys '25,
    show that this matters). A sampled item that is the target is left out.
    """

    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        assert targets.samples is not None
        sampled, sampled_KD = targets.samples.sampled, targets.samples.sampled_KD

        def losses(hidden_tD: Tensor, target_tD: Tensor, targets_t: Tensor) -> Tensor:
            logits_tK = wide(hidden_tD @ sampled_KD.T) - sampled.log_expected_K
            logits_tK = logits_tK.masked_fill(targets_t[:, None] == sampled.items_K, -torch.inf)
            target_logit_t1 = wide(hidden_tD * target_tD).sum(1, keepdim=True)
            return torch.cat([target_logit_t1, logits_tK], dim=1).logsumexp(1) - target_logit_t1[:, 0]

        inputs = targets.hidden_TD, targets.samples.target_TD, targets.targets_T
        return in_chunks(losses, len(sampled.items_K), targets.weights_T, *inputs)


SAMPLED_SOFTMAX = SampledSoftmax()
