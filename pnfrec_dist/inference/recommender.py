"""Ranks items for users: by the encoders for users with a history, else by popularity.

B users, N items, n items of one block, V = N + 1, D width, K list length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.data.batches import HistoryBatch
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.holdout import ScoreUsers
from pnfrec_dist.inference.candidates import Candidates, Listed, rank_candidates
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.top_k import Ranking, Scores, rank_items, table_scores

USERS_ENCODED = {"cpu": 64}
"""Users that are encoded at a time on a CPU, so that their activations need little memory."""
TOKENS_ENCODED = 2**17
"""The same for GPUs, in places of histories."""


@dataclass(frozen=True)
class Users:
    """Histories of users, oldest interaction first."""

    history: Ragged
    """what the main encoder reads: positives, or all items with signs (data/ragged.py: signed)"""
    negative: Ragged
    seen: Ragged
    """items that are never listed"""


class Recommender:
    """Ranks the catalog for users.

    The score is s = s_p - gamma * s_n. s_p is the main encoder's score of an item as the next liked one, and s_n that
    of it as the next disliked one: by the negative encoder (0 for users without negatives), or by a head of the main
    encoder. The paper ranks by s_p (gamma 0). For users without a history, log(1 + likes in train) replaces s_p; with
    gamma 0 it is multiplied by 1 - the item's cosine to the mean of the user's dislikes, if that cosine is above 0.
    """

    def __init__(
        self,
        model: PNFRec,
        num_positive_V: np.ndarray,
        is_hidden_V: np.ndarray | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        """num_positive_V: likes of each item in train; is_hidden_V: items that are hidden from all users; candidates:
        of an index, for lists of users with a history."""
        assert not model.item_table.is_sharded
        self.candidates = candidates
        self.model = model
        self.device = model.item_table.weight.device
        self.popularity_V = torch.from_numpy(np.log1p(num_positive_V)).float().to(self.device)
        self.is_hidden_V = None if is_hidden_V is None else torch.from_numpy(is_hidden_V).to(self.device)

    @torch.inference_mode()
    def rank(self, users: Users, rows: np.ndarray, k: int, gamma: float = 0.0) -> Ranking:
        """The k best items of the users `rows`, as rank_items gives them.

        Raises InputError for gamma > 0 if the model does not predict dislikes.
        """
        require_gamma(self.model, gamma)
        has_history_B = users.history.lengths[rows] > 0
        items_BK = torch.empty(len(rows), k, dtype=torch.int64, device=self.device)
        scores_BK = torch.empty(len(rows), k, device=self.device)
        for chosen_B, ranking in ((has_history_B, self._rank_by_history), (~has_history_B, self._rank_by_popularity)):
            if chosen_B.any():
                found = ranking(users, rows[chosen_B], k, gamma)
                places = torch.from_numpy(np.flatnonzero(chosen_B)).to(self.device)
                items_BK[places], scores_BK[places] = found.items_BK, found.scores_BK
        return Ranking(items_BK, scores_BK, None)

    def _rank_by_history(self, users: Users, rows: np.ndarray, k: int, gamma: float) -> Ranking:
        hidden_BD = self.vectors(users, rows, gamma)
        table = self.model.item_table

        def exact(chosen_B: Tensor) -> Ranking:
            places = chosen_B.nonzero()[:, 0]
            scores = self._listed(table_scores(hidden_BD[places], table))
            return rank_items(scores, k, users.seen, rows[places.cpu().numpy()])

        if self.candidates is None:
            return exact(torch.ones(len(rows), dtype=torch.bool, device=self.device))
        return rank_candidates(self.candidates, hidden_BD, table, Listed(k, users.seen, rows, self.is_hidden_V), exact)

    def _rank_by_popularity(self, users: Users, rows: np.ndarray, k: int, gamma: float) -> Ranking:
        return rank_items(self._listed(self._by_popularity(users, rows, gamma)), k, users.seen, rows)

    def of_holdout(self, gamma: float) -> ScoreUsers:
        """How holdout users or points score the catalog. They need HoldoutData.negative."""

        def scores(part: HoldoutData) -> Scores:
            assert part.negative is not None
            return self.by_history(Users(part.history, part.negative, part.seen), np.arange(len(part)), gamma)

        return scores

    def by_history(self, users: Users, rows: np.ndarray, gamma: float) -> Scores:
        """How users with a history score the catalog, including hidden items."""
        return table_scores(self.vectors(users, rows, gamma), self.model.item_table)

    def vectors(self, users: Users, rows: np.ndarray, gamma: float) -> Tensor:
        """What is multiplied with item vectors, for users with a history, [B, D]."""
        hidden_BD = self._encoded(partial(self.model.last_hidden, gamma=gamma), users.history, rows)
        if gamma and self.model.encoders.negative is not None:
            hidden_BD = hidden_BD - gamma * self._disliking(users, rows)
        return hidden_BD

    def _by_popularity(self, users: Users, rows: np.ndarray, gamma: float) -> Scores:
        table = self.model.item_table
        if gamma and self.model.encoders.negative is not None:  # without it, these users have no negatives either
            by_dislikes = table_scores(-gamma * self._disliking(users, rows), table)
            return _changed(by_dislikes, lambda scores_Bn, first, end: scores_Bn.add_(self.popularity_V[first:end]))
        ids_BN, _ = users.negative.newest(rows, self.model.max_length)
        unit_BND = F.normalize(table.weight[torch.from_numpy(ids_BN).to(self.device)], dim=-1)  # padding: 0
        mean_BD = F.normalize(unit_BND.sum(1), dim=-1)

        def popular_unlike(scores_Bn: Tensor, first: int, end: int) -> Tensor:
            norm_n = table.weight[first:end].norm(dim=1).clamp(min=torch.finfo(scores_Bn.dtype).tiny)
            return scores_Bn.div_(norm_n).clamp_(min=0).neg_().add_(1).mul_(self.popularity_V[first:end])

        return _changed(table_scores(mean_BD, table), popular_unlike)

    def _disliking(self, users: Users, rows: np.ndarray) -> Tensor:
        """The negative encoder's output at each user's newest negative, [B, D]; 0 for users without negatives."""
        hidden_BD = self._encoded(self.model.last_negative_hidden, users.negative, rows)
        return hidden_BD * torch.from_numpy(users.negative.lengths[rows] > 0).to(self.device)[:, None]

    def _encoded(self, encode: Callable[[HistoryBatch], Tensor], histories: Ragged, rows: np.ndarray) -> Tensor:
        """An encoder's output at each user's newest item, [B, D]."""
        at_once = USERS_ENCODED.get(self.device.type) or max(TOKENS_ENCODED // self.model.max_length, 1)
        parts = [rows[first : first + at_once] for first in range(0, len(rows), at_once)]
        batches = (history_batch(histories, part, self.model.max_length, self.device) for part in parts)
        return torch.cat([encode(batch) for batch in batches])

    def _listed(self, scores: Scores) -> Scores:
        """The scores with hidden items set to -inf."""
        is_hidden_V = self.is_hidden_V
        if is_hidden_V is None:
            return scores
        return _changed(
            scores, lambda scores_Bn, first, end: scores_Bn.masked_fill_(is_hidden_V[first:end], -torch.inf)
        )


def require_gamma(model: PNFRec, gamma: float) -> None:
    """Raises InputError unless gamma is a finite number >= 0, and for gamma > 0 if the model predicts no dislikes."""
    is_number = isinstance(gamma, int | float | np.number) and not isinstance(gamma, bool)
    if not is_number or not 0 <= gamma < float("inf"):
        raise InputError(f"gamma is {gamma!r}; it must be a finite number >= 0")
    if gamma and not model.encoders.predicts_dislikes:
        way_out = "use 0, or train one with loss.alpha above 0 (pnfrec_plus, pnfrec, ...)"
        raise InputError(f"gamma is {gamma:g}, but the model does not predict dislikes; {way_out}")


def _changed(scores: Scores, change: Callable[[Tensor, int, int], Tensor]) -> Scores:
    """The scores with `change` applied to each block; only for lists, not for targets."""

    def no_items(_: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("changed scores are only for lists")

    def block(first: int, end: int) -> Tensor:
        return change(scores.block(first, end), first, end)

    return Scores(scores.first, scores.end, block, no_items, scores.shards)
