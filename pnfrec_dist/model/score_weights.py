"""How the scores of an item as next like and as next dislike become one score.

P tokens or users, D width of item vectors.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class ScoreWeights:
    """likes_share: share of the likes' encoder (history both); gamma: weight of the score as next dislike."""

    likes_share: float = 1.0
    gamma: float = 0.0


class ScoreParts(NamedTuple):
    """What is multiplied with item vectors. None: the model does not have this part."""

    main_PD: Tensor
    likes_PD: Tensor | None
    """of the likes' encoder; 0 if there is no like yet"""
    has_likes_P: Tensor | None
    dislikes_PD: Tensor | None
    """its products are the scores as next dislike"""

    def rows(self, chosen: Tensor | slice) -> "ScoreParts":
        likes_PD, has_likes_P, dislikes_PD = (part[chosen] if part is not None else None for part in self[1:])
        return ScoreParts(self.main_PD[chosen], likes_PD, has_likes_P, dislikes_PD)

    def weighted(self, weights: ScoreWeights) -> Tensor:
        """Weighted sum of the parts, [P, D]. Without a like, the main encoder has the whole weight."""
        score_PD = self.main_PD
        if self.likes_PD is not None:
            assert self.has_likes_P is not None
            share_P1 = weights.likes_share * self.has_likes_P[:, None].to(score_PD.dtype)
            score_PD = share_P1 * self.likes_PD + (1 - share_P1) * score_PD
        if weights.gamma and self.dislikes_PD is not None:
            score_PD = score_PD - weights.gamma * self.dislikes_PD
        return score_PD
