"""An encoder as one plain function of item ids, for programs that only have torch.

B users, L positions, P = B L tokens, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.model.item_table import ItemTable


class PlainEncoder(nn.Module):
    """Item ids -> user vectors, with the weights of a trained model.

    All users form one group of the encoder, so that the traced graph does not contain the packing of batches.
    """

    def __init__(
        self, table: ItemTable, encode: Callable[..., Tensor], parts: Sequence[nn.Module], *, reads_signs: bool
    ) -> None:
        """encode: item vectors, groups and signs of tokens -> hidden states; parts: the modules that it uses."""
        assert not table.is_sharded
        super().__init__()
        self.item_vectors = table.weight
        self.parts = nn.ModuleList(parts)
        self.encode = encode
        self.reads_signs = reads_signs

    def forward(self, items_BL: Tensor) -> Tensor:
        """items_BL: int64, oldest first, right-padded with PAD_ID; L at most the encoder's positions. For an encoder
        that reads signs, a disliked item is minus its id.

        -> the output at each user's newest item, [B, D]; at padding for a user without items.
        """
        users, length = items_BL.shape
        items_P, is_disliked_P = items_BL.flatten(), None
        if self.reads_signs:
            items_P, is_disliked_P = items_P.abs(), items_P < 0
        hidden_PD = self.encode(F.embedding(items_P, self.item_vectors), ((users, length),), is_disliked_P)
        last_B = (items_BL != PAD_ID).sum(1).clamp(min=1) - 1
        return hidden_PD.view(users, length, -1)[torch.arange(users, device=items_BL.device), last_B]
