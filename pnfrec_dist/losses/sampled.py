"""Cross-entropy over some items in place of the whole catalog, for when exact is too slow (compared in docs/losses.md).

T real targets, D width, N items, K sampled items, B buckets, X targets and Y items of a bucket.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pnfrec_dist.config.settings import SampledSettings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.losses.cross_entropy import blocks
from pnfrec_dist.model.item_table import ItemTable, take
from pnfrec_dist.model.top_k import rank_items, table_scores

CHUNK_LOGITS = 1 << 21
"""Logits that exist at a time; backward makes them again."""


def sampled_softmax(
    hidden_TD: Tensor, target_TD: Tensor, targets_T: Tensor, sampled_KD: Tensor, sampled: Sampled, weights_T: Tensor
) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) with the sum over items estimated from a sample that all targets share.

    loss = log(exp(s_t) + sum_{j in sample, j != t} exp(s_j - log_expected_j)) - s_t, s = hidden . item. Each sampled
    item stands for 1 / (its expected count) items, so the sum over items is estimated without bias (Bengio and Senecal,
    IEEE TNN 2008). The target is not drawn but always there, so it is not corrected (that this matters is shown by
    Khrylchenko et al., RecSys '25), and a sampled item that is the target is left out.

    target_TD: vectors of targets_T; sampled_KD: vectors of sampled.items_K.
    """

    def losses(hidden_tD: Tensor, target_tD: Tensor, targets_t: Tensor) -> Tensor:
        logits_tK = _wide(hidden_tD @ sampled_KD.T) - sampled.log_expected_K
        logits_tK = logits_tK.masked_fill(targets_t[:, None] == sampled.items_K, -torch.inf)
        target_logit_t1 = _wide(hidden_tD * target_tD).sum(1, keepdim=True)
        return torch.cat([target_logit_t1, logits_tK], dim=1).logsumexp(1) - target_logit_t1[:, 0]

    return _in_chunks(losses, len(sampled.items_K), weights_T, hidden_TD, target_TD, targets_T)


def gbce(
    hidden_TD: Tensor,
    target_TD: Tensor,
    targets_T: Tensor,
    sampled_KD: Tensor,
    sampled: Sampled,
    weights_T: Tensor,
    num_items: int,
    calibration: float,
) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) of the generalised binary cross-entropy (Petrov and Macdonald, RecSys '23).

    loss = -(b log sigmoid(s_t) + sum_{j in sample, j != t} log(1 - sigmoid(s_j))), b = a (c (1 - 1/a) + 1/a), where
    a = K / (N - 1) is the share of sampled negatives and c = calibration in [0, 1]; c = 0 is plain BCE. An item drawn m
    times counts m times. The sample, shared by all targets, is to be uniform.
    """
    share = min(sampled.num_drawn / max(num_items - 1, 1), 1.0)
    power = share * (calibration * (1 - 1 / share) + 1 / share)

    def losses(hidden_tD: Tensor, target_tD: Tensor, targets_t: Tensor) -> Tensor:
        is_target_tK = targets_t[:, None] == sampled.items_K
        negative_tK = F.softplus(_wide(hidden_tD @ sampled_KD.T)) * sampled.drawn_K
        target_logit_t = _wide(hidden_tD * target_tD).sum(1)
        return negative_tK.masked_fill(is_target_tK, 0.0).sum(1) - power * F.logsigmoid(target_logit_t)

    return _in_chunks(losses, len(sampled.items_K), weights_T, hidden_TD, target_TD, targets_T)


def sce(
    hidden_TD: Tensor, table: ItemTable, targets_T: Tensor, weights_T: Tensor, settings: SampledSettings
) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) of Scalable Cross-Entropy (Mezentsev et al., RecSys '24).

    B random mixtures of the hidden states each pick the X targets and the Y items that they score highest; a target's
    loss is the largest of its softmax losses over the buckets that picked it. Targets that no bucket picked have loss
    0, and the weights of the others are raised to make up for them. Draws from torch's generator.
    """
    with torch.no_grad():
        num_targets = min(settings.sce_targets, len(targets_T))
        mixture_BT = torch.randn(settings.sce_buckets, len(targets_T), device=hidden_TD.device, dtype=hidden_TD.dtype)
        bucket_BD = mixture_BT @ hidden_TD
        place_BX = (bucket_BD @ hidden_TD.T).topk(num_targets, dim=1).indices
        item_BY = _best_items(bucket_BD, table, settings.sce_items)
        items_U, place_U = torch.cat([item_BY.flatten(), targets_T]).unique(return_inverse=True)
        place_BY, target_place_T = place_U[: item_BY.numel()].view_as(item_BY), place_U[item_BY.numel() :]
    vectors_UD = table.lookup(items_U)
    target_logit_T = _wide(hidden_TD * take(vectors_UD, target_place_T)).sum(1)

    def bucket_losses(place_X: Tensor, place_Y: Tensor, items_Y: Tensor) -> Tensor:
        logits_XY = _wide(hidden_TD[place_X] @ take(vectors_UD, place_Y).T)
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


def _best_items(bucket_BD: Tensor, table: ItemTable, count: int) -> Tensor:
    """Ids of each bucket's `count` items of highest score, [B, Y]; 0 where the catalog has fewer."""
    shards, rows = table.shards, [len(bucket_BD)] * table.shards.size
    all_BD = shards.gather_rows(bucket_BD.to(table.weight.dtype), rows)
    nothing_seen = Ragged(np.zeros(len(all_BD) + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    best = rank_items(table_scores(all_BD, table), count, nothing_seen, np.arange(len(all_BD)))
    return best.items_BK.split(rows)[shards.rank]


def _in_chunks(losses: Callable[..., Tensor], width: int, weights_T: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of weight * loss, loss_T) of `losses` over rows of the inputs, CHUNK_LOGITS / width rows at a time."""
    size = max(CHUNK_LOGITS // max(width, 1), 1)
    parts = [
        checkpoint(losses, *(t[rows] for t in inputs), use_reentrant=False)
        for rows in blocks(max(len(weights_T), 1), size)
    ]
    loss_T = torch.cat(parts)
    return (weights_T.to(loss_T.dtype) * loss_T).sum(), loss_T.detach()


def _wide(logits: Tensor) -> Tensor:
    """At least float32, whatever autocast made of them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
