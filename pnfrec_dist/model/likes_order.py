"""Where the likes are in windows of likes and dislikes.

P tokens of all users, G users of one group, L its length.
"""

import torch
from torch import Tensor

from pnfrec_dist.data.batches import Groups


def likes_first(is_disliked_P: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """([P] the tokens of each window with its likes first, in their order; [P] the place among them of the newest like
    at or before each token, -1 if there is none).

    Padding counts as likes; it is on the right, so it comes after all real likes, and attention is causal.
    """
    tokens = [users * length for users, length in groups]
    nothing = is_disliked_P.new_empty(0, dtype=torch.int64)
    orders, places, first = [nothing], [nothing], 0
    for (users, length), is_disliked_g in zip(groups, is_disliked_P.split(tokens), strict=True):
        is_disliked_GL = is_disliked_g.view(users, length)
        start_G1 = first + length * torch.arange(users, device=is_disliked_P.device)[:, None]
        orders.append((start_G1 + is_disliked_GL.to(torch.uint8).argsort(dim=1, stable=True)).flatten())
        newest_GL = (~is_disliked_GL).cumsum(1) - 1
        places.append((start_G1 + newest_GL).masked_fill(newest_GL < 0, -1).flatten())
        first += users * length
    return torch.cat(orders), torch.cat(places)
