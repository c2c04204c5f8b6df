"""Generalised binary cross-entropy over sampled items (Petrov and Macdonald, RecSys '23; compared in docs/losses.md).

T real targets, t those of a chunk, D width, K sampled items.
"""

from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import require
from pnfrec_dist.losses.catalog_loss import Targets
from pnfrec_dist.losses.chunks import SampledItemsLoss, in_chunks, wide
from pnfrec_dist.model.item_table import ItemTable


class GeneralisedBCE(SampledItemsLoss):
    """loss = -(b log sigmoid(s_t) + sum_{j in sample, j != t} log(1 - sigmoid(s_j))), s = hidden . item.

    b = a (c (1 - 1/a) + 1/a), where a = K / (N - 1) is the share of sampled negatives and c in [0, 1] is
    sampled.gbce_calibration; c = 0 is plain BCE. An item drawn m times counts m times. All targets share the sample,
    which must be uniform.
    """

    def require(self, settings: Settings) -> None:
        distribution = settings.sampled.distribution
        rule = "uniform if loss.cross_entropy is gbce"
        require(distribution == "uniform", "sampled.distribution", distribution, rule)

    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        assert targets.samples is not None
        sampled, sampled_KD = targets.samples.sampled, targets.samples.sampled_KD
        share = min(sampled.num_drawn / max(table.num_items - 1, 1), 1.0)
        power = share * (settings.sampled.gbce_calibration * (1 - 1 / share) + 1 / share)

        def losses(hidden_tD: Tensor, target_tD: Tensor, targets_t: Tensor) -> Tensor:
            is_target_tK = targets_t[:, None] == sampled.items_K
            negative_tK = F.softplus(wide(hidden_tD @ sampled_KD.T)) * sampled.drawn_K
            target_logit_t = wide(hidden_tD * target_tD).sum(1)
            return negative_tK.masked_fill(is_target_tK, 0.0).sum(1) - power * F.logsigmoid(target_logit_t)

        inputs = targets.hidden_TD, targets.samples.target_TD, targets.targets_T
        return in_chunks(losses, len(sampled.items_K), targets.weights_T, *inputs)


GBCE = GeneralisedBCE()
