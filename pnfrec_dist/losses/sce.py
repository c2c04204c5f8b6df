"""Scalable Cross-Entropy (Mezentsev et al., RecSys '24): softmax over items that score high for the batch.

T real targets, D width, B buckets, X targets and Y items of a bucket (compared in docs/losses.md).
"""

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.losses.catalog_loss import FLOAT, CatalogLoss, StepExtent, Targets
from pnfrec_dist.losses.chunks import wide
from pnfrec_dist.model.item_table import ItemTable, take
from pnfrec_dist.model.top_k import rank_items, table_scores


class ScalableCrossEntropy(CatalogLoss):
    """Each of B buckets, a random mixture of the hidden states, picks the X targets and the Y items that it scores
    highest. A target's loss is the largest of its softmax losses in the buckets that picked it.

    Targets that no bucket picked have loss 0, and the weights of the others are raised to compensate. Draws from
    torch's generator.
    """

    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        hidden_TD, targets_T, weights_T, sampled = (
            targets.hidden_TD,
            targets.targets_T,
            targets.weights_T,
            settings.sampled,
        )
        with torch.no_grad():
            num_targets = min(sampled.sce_targets, len(targets_T))
            mixture_BT = torch.randn(
                sampled.sce_buckets, len(targets_T), device=hidden_TD.device, dtype=hidden_TD.dtype
            )
            bucket_BD = mixture_BT @ hidden_TD
            place_BX = (bucket_BD @ hidden_TD.T).topk(num_targets, dim=1).indices
            item_BY = _best_items(bucket_BD, table, sampled.sce_items)
            items_U, place_U = torch.cat([item_BY.flatten(), targets_T]).unique(return_inverse=True)
            place_BY, target_place_T = place_U[: item_BY.numel()].view_as(item_BY), place_U[item_BY.numel() :]
        vectors_UD = table.lookup(items_U)
        target_logit_T = wide(hidden_TD * take(vectors_UD, target_place_T)).sum(1)

        def bucket_losses(place_X: Tensor, place_Y: Tensor, items_Y: Tensor) -> Tensor:
            logits_XY = wide(hidden_TD[place_X] @ take(vectors_UD, place_Y).T)
            hidden_XY = (targets_T[place_X, None] == items_Y) | (items_Y == 0)
            logits_XY = logits_XY.masked_fill(hidden_XY, -torch.inf)
            own_X1 = target_logit_T[place_X, None]
            return torch.cat([own_X1, logits_XY], dim=1).logsumexp(1) - own_X1[:, 0]

        loss_BX = torch.stack(
            [
                checkpoint(bucket_losses, *bucket, use_reentrant=False)
                for bucket in zip(place_BX, place_BY, item_BY, strict=True)
            ]
        )
        loss_T = loss_BX.new_zeros(len(targets_T)).scatter_reduce(0, place_BX.flatten(), loss_BX.flatten(), "amax")
        picked_T = torch.zeros_like(targets_T, dtype=torch.bool).index_fill_(0, place_BX.flatten(), True)
        weights_T = weights_T.to(loss_T.dtype)
        raise_by = weights_T.sum() / (weights_T * picked_T).sum().clamp(min=torch.finfo(weights_T.dtype).tiny)
        return (weights_T * loss_T).sum() * raise_by, loss_T.detach() * raise_by

    def bytes(self, extent: StepExtent, settings: Settings) -> int:
        sampled, width, tokens = settings.sampled, settings.encoder.vector_size, extent.targets
        buckets, targets, items = sampled.sce_buckets, min(sampled.sce_targets, tokens), sampled.sce_items
        vectors = 3 * width * min(buckets * items + tokens, extent.num_items)
        return FLOAT * (buckets * (2 * tokens + extent.shards * width + 4 * targets + 6 * items) + vectors)

    def ways_to_save(self, settings: Settings) -> dict[str, float]:
        return {"a lower --sampled.sce-buckets": 0.5}


SCE = ScalableCrossEntropy()


def _best_items(bucket_BD: Tensor, table: ItemTable, count: int) -> Tensor:
    """Ids of each bucket's `count` items with the highest scores, [B, Y]; filled up with 0 if there are fewer."""
    shards, rows = table.shards, [len(bucket_BD)] * table.shards.size
    all_BD = shards.gather_rows(bucket_BD.to(table.weight.dtype), rows)
    nothing_seen = Ragged(np.zeros(len(all_BD) + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    best = rank_items(table_scores(all_BD, table), count, nothing_seen, np.arange(len(all_BD)))
    return best.items_BK.split(rows)[shards.rank]
