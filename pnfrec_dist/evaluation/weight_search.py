"""Chooses the weights of a model's scores, likes_share and gamma, on validation users.

T targets, B targets of a batch, W weights that are tried, D width of item vectors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.epoch_plan import rank_share
from pnfrec_dist.data.points import Points
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import Ranked, ScoreUsers, model_parts
from pnfrec_dist.evaluation.metrics import HEADLINE_CUTOFF, ndcg
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreParts, ScoreWeights
from pnfrec_dist.model.top_k import rank_targets, table_scores

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GAMMAS = tuple(step / 20 for step in range(11))
KEEP = 0.95
"""Without an encoder of likes, gamma may cost this much of NDCG_p@10: 5 %."""
MAX_TARGETS = 50_000
SIGNIFICANT = 1.96
"""So many standard errors make a difference significant."""


def searches_share(settings: Settings) -> bool:
    return settings.encoder.likes_share == "auto" and settings.encoder.history_kind.reads_likes_too


def is_searched(settings: Settings) -> bool:
    return searches_share(settings) or settings.evaluation.gamma == "auto"


class Batch(NamedTuple):
    """Some of one rank's targets."""

    place_B: np.ndarray
    """places among the targets of the search"""
    seen: Ragged
    target_B: Tensor
    parts: ScoreParts
    """of what scores items for them"""


@dataclass(frozen=True)
class Found:
    """The weights, and what the encoders gave for the targets."""

    weights: ScoreWeights
    batches: list[Batch]
    """in the order of `evaluate`"""

    def score_users(self, model: PNFRec, weights: ScoreWeights) -> ScoreUsers:
        """Scores for `evaluate` of the same targets, batch after batch, without running the encoders again."""
        parts = iter(batch.parts for batch in self.batches)
        return lambda users: table_scores(next(parts).weighted(weights), model.item_table)


class WeightSearch:
    """Finds the weights that settings leave to validation ("auto"); the others keep their values.

    The encoders run once for each target; then all weights are tried on what they gave.
    """

    def __init__(
        self,
        settings: Settings,
        targets: Ranked,
        model: PNFRec,
        world: World,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """targets: with dislikes among them, if gamma is searched and the data have them. All ranks take the same.

        progress: called after each batch, with the share of the targets that is done, from 0 again for each pass."""
        self.settings, self.model, self.world, self.progress = settings, model, world, progress
        self.searches_share, self.searches_gamma = searches_share(settings), settings.evaluation.gamma == "auto"
        few = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), MAX_TARGETS)).astype(np.int64))
        self.is_positive_T = targets.target_is_positive[few].astype(bool)
        self.user_T = targets.user_P[few] if isinstance(targets, Points) else few
        self.targets, self.chosen_T = targets, few

    def metrics(self, found: ScoreWeights) -> dict[str, float]:
        """The weights that were searched."""
        share = {"likes_share": found.likes_share} if self.searches_share else {}
        return share | ({"gamma": found.gamma} if self.searches_gamma else {})

    @property
    def takes_all(self) -> bool:
        """Whether no target is left out."""
        return len(self.chosen_T) == len(self.targets)

    @torch.inference_mode()
    def find(self) -> Found:
        """The same on every rank: first the share (_best_share), at the gamma of the settings or else 0; then gamma
        (_gamma_without_harm if there is an encoder of likes, else _best_gamma)."""
        self.model.eval()
        batches = self._batches()
        weights, of_likes_T = self.model.encoders.weights, None
        if self.searches_gamma:
            weights = replace(weights, gamma=0.0)
        if self.searches_share:
            found = self._tried(batches, [replace(weights, likes_share=share) for share in SHARES])
            weights, of_likes_T = replace(weights, likes_share=self._best_share(found)), found[SHARES.index(1.0)]
        if self.searches_gamma and not self.is_positive_T.all():
            if of_likes_T is None and self.model.encoders.likes is not None:
                (of_likes_T,) = self._tried(batches, [ScoreWeights(likes_share=1.0)])
            found = self._tried(batches, [replace(weights, gamma=gamma) for gamma in GAMMAS])
            has_likes = of_likes_T is not None
            gamma = self._gamma_without_harm(found, of_likes_T) if has_likes else self._best_gamma(found)
            weights = replace(weights, gamma=gamma)
        return Found(weights, batches)

    def _best_share(self, values_WT: np.ndarray) -> float:
        """The share with the best NDCG_p; of equal ones, the largest."""
        scores = {share: self._mean(values_T, True) for share, values_T in zip(SHARES, values_WT, strict=True)}
        return max(scores, key=lambda share: (scores[share], share))

    def _gamma_without_harm(self, values_WT: np.ndarray, of_likes_T: np.ndarray) -> float:
        """The smallest gamma with which the model ranks liked targets at least as high as its encoder of likes alone
        does, and disliked ones no higher (NDCG_p and NDCG_n). If there is none: of those with such an NDCG_p, the gamma
        with the best dNDCG; else 0."""
        ndcg_p, ndcg_n = (np.array([self._mean(values_T, side) for values_T in values_WT]) for side in (True, False))
        ranks_likes = ndcg_p >= self._mean(of_likes_T, True)
        does_no_harm = ranks_likes & (ndcg_n <= self._mean(of_likes_T, False))
        if does_no_harm.any():
            return GAMMAS[int(np.argmax(does_no_harm))]
        return GAMMAS[int(np.argmax(np.where(ranks_likes, ndcg_p - ndcg_n, -np.inf)))]

    def _best_gamma(self, values_WT: np.ndarray) -> float:
        """The gamma with the best dNDCG among those that keep 95 % of the NDCG_p of gamma 0, if its dNDCG is
        significantly better than that of gamma 0; else 0."""
        ndcg_p = np.array([self._mean(values_T, True) for values_T in values_WT])
        delta = ndcg_p - [self._mean(values_T, False) for values_T in values_WT]
        best = int(np.argmax(np.where(ndcg_p >= KEEP * ndcg_p[0], delta, -np.inf)))
        sign_T = np.where(self.is_positive_T, 1, -1)
        return GAMMAS[best] if is_above_zero(values_WT[best] - values_WT[0], sign_T, self.user_T) else 0.0

    def _mean(self, values_T: np.ndarray, positive: bool) -> float:
        chosen_T = self.is_positive_T == positive
        return float(values_T[chosen_T].mean()) if chosen_T.any() else 0.0

    def _batches(self) -> list[Batch]:
        table, size = self.model.item_table, self.settings.evaluation.batch_size
        places = np.arange(len(self.chosen_T))
        mine = places if table.is_sharded else rank_share(places, self.world.rank, self.world.size)
        found = []
        for first in range(0, len(mine), size):
            some = mine[first : first + size]
            part = self.targets.part(self.chosen_T[some])
            target_B = torch.from_numpy(part.target_item.astype(np.int64)).to(self.world.device)
            found.append(Batch(some, part.seen, target_B, model_parts(self.model, part, self.world)))
            self.progress((first + len(some)) / len(mine))
        return found

    def _tried(self, batches: list[Batch], tried: Sequence[ScoreWeights]) -> np.ndarray:
        """NDCG@10 of each target under each weights, [W, T]."""
        device = self.world.device
        ranks_WT = torch.zeros(len(tried), len(self.chosen_T), dtype=torch.int64, device=device)
        for number, batch in enumerate(batches, start=1):
            ranks_WT[:, torch.from_numpy(batch.place_B).to(device)] = self._ranks(batch, tried)
            self.progress(number / len(batches))
        if not self.model.item_table.is_sharded:
            ranks_WT = self.world.sum(ranks_WT)
        return ndcg(ranks_WT.cpu().numpy(), HEADLINE_CUTOFF)

    def _ranks(self, batch: Batch, tried: Sequence[ScoreWeights]) -> Tensor:
        """Rank of each target under each weights, [W, B]. Each pair of weights and target is like a user."""
        hidden_WBD = torch.stack([batch.parts.weighted(weights) for weights in tried])
        scores = table_scores(hidden_WBD.flatten(0, 1), self.model.item_table)
        rows = np.tile(np.arange(len(batch.place_B)), len(tried))
        return rank_targets(scores, batch.seen, rows, batch.target_B.repeat(len(tried))).view(len(tried), -1)


def is_above_zero(gain_T: np.ndarray, sign_T: np.ndarray, user_T: np.ndarray) -> bool:
    """Whether a mean gain is above 0 by more than 1.96 standard errors.

    The gain is the mean over targets of sign 1 minus the mean over those of sign -1. Targets of one user are not
    independent: the error is that of a sum over users (the linearised, cluster-robust variance of a difference of
    ratios; Wolter, Introduction to Variance Estimation, 2007, section 6.5).
    """
    total, influence_T = 0.0, np.zeros(len(gain_T))
    for sign in (1, -1):
        chosen_T = sign_T == sign
        if chosen_T.any():
            mean = float(gain_T[chosen_T].mean())
            total += sign * mean
            influence_T[chosen_T] = sign * (gain_T[chosen_T] - mean) / np.count_nonzero(chosen_T)
    of_users = np.bincount(np.unique(user_T, return_inverse=True)[1], influence_T)
    users = len(of_users)
    return users > 1 and total > SIGNIFICANT * math.sqrt(float((of_users**2).sum()) * users / (users - 1))
