"""The input of a step: packed tensors of one rank's share of a global batch (collate.py makes them).

B users, P tokens, T real targets, U distinct items, N negatives of a user, K sampled items.

Users are sorted into groups of similar length, each padded to its longest user. The tokens of all groups form one
axis; only attention sees a group as users x length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Groups = tuple[tuple[int, int], ...]
"""(users, length) of each group, in order; the group's tokens are its users' windows one after another."""


@dataclass(frozen=True)
class BatchParts:
    """The parts of a training batch that terms of the loss need in addition to the main side (losses/terms.py)."""

    negative: bool = False
    """targets of next negatives: in windows of S^n for a negative encoder, or in those of a signed history"""
    contrast: bool = False
    """next positives and negatives of each user, for the contrastive term"""
    likes: bool = False
    """targets of a further encoder over the likes of a signed history: the next like after each like"""


@dataclass(frozen=True)
class Sequences:
    """One encoder's windows, oldest item first."""

    inputs_P: Tensor
    """place of each token's item in the batch's items_U"""
    groups: Groups
    places_T: Tensor
    """tokens with an item to predict"""
    targets_T: Tensor
    """that item's id"""
    target_places_T: Tensor | None
    """its place in items_U; None unless items are sampled"""
    is_disliked_P: Tensor | None
    """whether the token is a dislike, bool; None unless the encoder reads signs"""
    is_real_T: Tensor | None = None
    """bool, in batches of fixed shapes: other targets are padding, and have no weight in the loss"""

    @property
    def num_targets(self) -> int | Tensor:
        """A tensor if there is padding."""
        return len(self.targets_T) if self.is_real_T is None else torch.count_nonzero(self.is_real_T)


@dataclass(frozen=True)
class Contrast:
    """The input of L_c; users are in the order of the main side's groups."""

    next_P: Tensor
    """place in items_U of the next positive item after each positive token; 0 (padding) if there is none"""
    negatives_BN: Tensor
    """places in items_U of each user's negative items, padded with 0"""
    num_tokens: int | Tensor
    """tokens that have a next positive item"""


@dataclass(frozen=True)
class Sampled:
    """Items drawn at random from the catalog, shared by all targets of a step; distinct, ascending."""

    places_K: Tensor
    """in items_U"""
    items_K: Tensor
    drawn_K: Tensor
    """how often each was drawn"""
    log_expected_K: Tensor
    """log of (expected number of draws / number of draws)"""
    num_drawn: int
    """draws, repeats included"""


@dataclass(frozen=True)
class TrainBatch:
    """The input of one training step of one rank; a part that no term of the loss needs is None."""

    items_U: Tensor
    """ids of the items in the batch; the first is PAD_ID. Ascending and distinct, except in batches of fixed shapes"""
    main: Sequences
    negative: Sequences | None
    """of the windows of S^n; of a signed history: main with its next negatives as targets"""
    contrast: Contrast | None
    sampled: Sampled | None
    likes: Sequences | None = None
    """main with the next like after each like as targets"""
    has_all_items: bool = False
    """items_U are all rows of the item table, in order"""


@dataclass(frozen=True)
class HistoryBatch:
    """Inference input."""

    items_U: Tensor
    inputs_P: Tensor
    is_disliked_P: Tensor
    """bool; an encoder that does not read signs ignores it"""
    groups: Groups
    last_B: Tensor
    """the token of each user's newest item, in the order of the users asked for"""
