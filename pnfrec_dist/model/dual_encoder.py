"""The model: one item table, a positive encoder, and a negative one where the loss uses it (paper, section 3).

B users, L positions, D width, N items.
"""

import torch
from torch import Tensor, nn

from pnfrec_dist.config import EncoderSettings, LossSettings
from pnfrec_dist.model.encoder import INIT_STD, Encoder, initialize
from pnfrec_dist.model.item_table import ItemTable


class DualEncoder(nn.Module):
    """Two encoders with own positions over S^p and S^n, sharing the item table.

    Weights are drawn from `generator` alone. Inference uses the positive encoder.
    """

    def __init__(
        self, num_items: int, encoder: EncoderSettings, loss: LossSettings, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.max_length = encoder.max_length
        self.item_table = ItemTable(num_items, encoder.hidden_size)
        self.positive_encoder = Encoder(encoder)
        self.negative_encoder = Encoder(encoder) if loss.alpha > 0 else None
        with torch.no_grad():
            self.item_table.weight[1:].normal_(0.0, INIT_STD, generator=generator)
        initialize(self, generator)

    def forward(self, positive_inputs_BL: Tensor, negative_inputs_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Hidden states of both sides, [B, L, D] each; None for a side without inputs."""
        positive_BLD = self.positive_encoder(self.item_table.lookup(positive_inputs_BL))
        if self.negative_encoder is None or negative_inputs_BL is None:
            return positive_BLD, None
        return positive_BLD, self.negative_encoder(self.item_table.lookup(negative_inputs_BL))

    def scores(self, inputs_BL: Tensor, last_B: Tensor) -> Tensor:
        """Score of every item after each user's last position: [B, N + 1], column = item_id, padding at -inf."""
        hidden_BLD, _ = self(inputs_BL, None)
        hidden_BD = hidden_BLD[torch.arange(len(last_B), device=last_B.device), last_B]
        scores_BV = hidden_BD @ self.item_table.weight.T
        scores_BV[:, 0] = -torch.inf
        return scores_BV
