"""A straightforward training step, for comparison: fp32, padded windows, all logits, exp and sum.

Two SASRec encoders with nn.MultiheadAttention over windows padded to max_length, cross-entropy on the logits of every
position (ignore_index leaves out padding), the contrastive term by exp, sum and log, torch's Adam with its defaults.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnfrec_dist.config.settings import EncoderSettings, LossSettings

IGNORE_INDEX = -100


class PlainBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.attention = nn.MultiheadAttention(width, 1, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BLD: Tensor, is_future_LL: Tensor) -> Tensor:
        query_BLD = self.attention_norm(x_BLD)
        mixed_BLD, _ = self.attention(query_BLD, x_BLD, x_BLD, attn_mask=is_future_LL)
        x_BLD = self.feed_forward_norm(query_BLD + mixed_BLD)
        return x_BLD + self.feed_forward(x_BLD)


class PlainModel(nn.Module):
    def __init__(self, num_items: int, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.positions = nn.ModuleList(nn.Embedding(settings.max_length, width) for _ in range(2))
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleList(PlainBlock(width, settings.dropout) for _ in range(settings.num_blocks)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-8) for _ in range(2))

    def encode(self, side: int, inputs_BL: Tensor) -> Tensor:
        length = inputs_BL.shape[1]
        is_future_LL = ~torch.tril(torch.ones(length, length, dtype=torch.bool))
        x_BLD = self.items(inputs_BL) * self.items.embedding_dim**0.5
        x_BLD = self.dropout(x_BLD + self.positions[side](torch.arange(length)))
        for block in self.blocks[side]:  # type: ignore[union-attr]
            x_BLD = block(x_BLD, is_future_LL)
        return self.norms[side](x_BLD)


def plain_step(
    model: PlainModel,
    optimizer: torch.optim.Optimizer,
    positive_BL: tuple[Tensor, Tensor],
    negative_BL: tuple[Tensor, Tensor],
    contrast_BN: Tensor,
    settings: LossSettings,
) -> float:
    """One step; positive_BL and negative_BL: (inputs, targets), padding 0 and IGNORE_INDEX."""
    loss, hidden = torch.zeros(()), []
    for side, (weight, (inputs_BL, targets_BL)) in enumerate(
        zip((1.0, settings.alpha), (positive_BL, negative_BL), strict=True)
    ):
        hidden_BLD = model.encode(side, inputs_BL)
        logits_BLN = hidden_BLD @ model.items.weight[1:].T
        class_BL = torch.where(targets_BL == IGNORE_INDEX, IGNORE_INDEX, targets_BL - 1)
        loss = loss + weight * F.cross_entropy(logits_BLN.flatten(0, 1), class_BL.flatten(), ignore_index=IGNORE_INDEX)
        hidden.append(hidden_BLD)
    is_real_BL = positive_BL[1] != IGNORE_INDEX
    next_BLD = model.items(positive_BL[1].clamp(min=0))
    negatives_BND = model.items(contrast_BN)
    hidden_BLD, next_BLD, negatives_BND = (F.normalize(t, dim=-1) for t in (hidden[0], next_BLD, negatives_BND))
    to_next_BL = (hidden_BLD * next_BLD).sum(-1).exp()
    to_negatives_BLN = (hidden_BLD @ negatives_BND.transpose(1, 2)).exp() * (contrast_BN != 0)[:, None]
    contrast_BL = -torch.log(to_next_BL / (to_next_BL + to_negatives_BLN.sum(-1)))
    loss = loss + settings.beta * contrast_BL[is_real_BL].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
