"""The item table: one row per item, input embedding and tied output of both encoders."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnfrec_dist.schema import PAD_ID


class ItemTable(nn.Module):
    """E, [num_items + 1, hidden_size]; row 0 is padding: always zero, no class of the softmax, no gradient."""

    def __init__(self, num_items: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_items + 1, hidden_size))

    @property
    def num_items(self) -> int:
        return len(self.weight) - 1

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of item ids, any shape -> [..., hidden_size]; PAD_ID gives zeros."""
        return F.embedding(ids, self.weight, padding_idx=PAD_ID)

    @property
    def classes_ND(self) -> Tensor:
        """The rows that the softmax runs over: row j stands for item_id j + 1."""
        return self.weight[1:]
