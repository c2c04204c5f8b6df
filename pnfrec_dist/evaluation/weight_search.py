"""Chooses the weights of a model's scores, likes_share and gamma, on validation users.

T targets, B targets of a batch, W weights that are tried, D width of item vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.epoch_plan import rank_share
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import Ranked, ScoreUsers, model_parts
from pnfrec_dist.evaluation.metrics import HEADLINE_CUTOFF, ndcg
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreParts, ScoreWeights
from pnfrec_dist.model.top_k import rank_targets, table_scores

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GAMMAS = tuple(step / 20 for step in range(11))
KEEP = 0.95
"""Gamma may cost this much of the best NDCG_p@10: 5 %."""
MAX_TARGETS = 50_000

Quality = tuple[float, float | None]
"""NDCG_p@10, and dNDCG@10 if there are dislikes among the targets."""


def is_searched(settings: Settings) -> bool:
    return "auto" in (settings.encoder.likes_share, settings.evaluation.gamma)


Batches = list[tuple[np.ndarray, HoldoutData, ScoreParts]]
"""One rank's targets, batch by batch: places, targets, and the parts of what scores them."""


@dataclass(frozen=True)
class Found:
    """The weights, and what the encoders gave for the targets."""

    weights: ScoreWeights
    batches: Batches

    def score_users(self, model: PNFRec, weights: ScoreWeights) -> ScoreUsers:
        """Scores for `evaluate` of the same targets, batch after batch, without running the encoders again."""
        parts = iter(parts for _, _, parts in self.batches)
        return lambda users: table_scores(next(parts).weighted(weights), model.item_table)


class WeightSearch:
    """Finds the weights that settings leave to validation ("auto"); the others keep their values.

    The encoders run once for each target; then all weights are tried on what they gave.
    """

    def __init__(self, settings: Settings, targets: Ranked, model: PNFRec, world: World) -> None:
        """targets: with dislikes among them, if gamma is searched and the data have them. All ranks take the same."""
        self.settings, self.model, self.world = settings, model, world
        few = np.unique(np.linspace(0, len(targets) - 1, min(len(targets), MAX_TARGETS)).astype(np.int64))
        self.is_positive_T = targets.target_is_positive[few].astype(bool)
        self.targets, self.chosen_T = targets, few

    @property
    def searches_share(self) -> bool:
        return self.settings.encoder.likes_share == "auto" and self.model.encoders.likes is not None

    @property
    def searches_gamma(self) -> bool:
        return self.settings.evaluation.gamma == "auto"

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
        """The same on every rank: first the share with the best NDCG_p@10, at the gamma of the settings or else 0; then
        gamma (best_gamma)."""
        self.model.eval()
        batches = self._batches()
        weights, floor = self.model.encoders.weights, 0.0
        if self.searches_gamma:
            weights = replace(weights, gamma=0.0)
        if self.searches_share:
            found = self._tried(batches, [replace(weights, likes_share=share) for share in SHARES])
            scores = {weights.likes_share: quality[0] for weights, quality in found.items()}
            weights, floor = replace(weights, likes_share=best_share(scores)), scores[1.0]
        if self.searches_gamma:
            tried = [replace(weights, gamma=gamma) for gamma in GAMMAS]
            found = self._tried(batches, tried)
            weights = replace(weights, gamma=best_gamma({w.gamma: quality for w, quality in found.items()}, floor))
        return Found(weights, batches)

    def _batches(self) -> Batches:
        """In the order of `evaluate`."""
        table, size = self.model.item_table, self.settings.evaluation.batch_size
        places = np.arange(len(self.chosen_T))
        mine = places if table.is_sharded else rank_share(places, self.world.rank, self.world.size)
        found = []
        for first in range(0, len(mine), size):
            some = mine[first : first + size]
            part = self.targets.part(self.chosen_T[some])
            found.append((some, part, model_parts(self.model, part, self.world)))
        return found

    def _tried(self, batches: Batches, tried: Sequence[ScoreWeights]) -> dict[ScoreWeights, Quality]:
        device = self.world.device
        ranks_WT = torch.zeros(len(tried), len(self.chosen_T), dtype=torch.int64, device=device)
        for some, part, parts in batches:
            target_B = torch.from_numpy(part.target_item.astype(np.int64)).to(device)
            ranks_WT[:, torch.from_numpy(some).to(device)] = self._ranks(parts, part, target_B, tried)
        if not self.model.item_table.is_sharded:
            ranks_WT = self.world.sum(ranks_WT)
        values_WT = ndcg(ranks_WT.cpu().numpy(), HEADLINE_CUTOFF)
        return {weights: self._quality(values_T) for weights, values_T in zip(tried, values_WT, strict=True)}

    def _ranks(self, parts: ScoreParts, part: HoldoutData, target_B: Tensor, tried: Sequence[ScoreWeights]) -> Tensor:
        """Rank of each target under each weights, [W, B]. Each pair of weights and target is like a user."""
        hidden_WBD = torch.stack([parts.weighted(weights) for weights in tried])
        scores = table_scores(hidden_WBD.flatten(0, 1), self.model.item_table)
        rows = np.tile(np.arange(len(part)), len(tried))
        return rank_targets(scores, part.seen, rows, target_B.repeat(len(tried))).view(len(tried), -1)

    def _quality(self, values_T: np.ndarray) -> Quality:
        is_positive_T = self.is_positive_T
        of_likes = float(values_T[is_positive_T].mean()) if is_positive_T.any() else 0.0
        return of_likes, None if is_positive_T.all() else of_likes - float(values_T[~is_positive_T].mean())


def best_share(ndcg_p: Mapping[float, float]) -> float:
    """The share with the best NDCG_p; of equal ones, the largest."""
    return max(ndcg_p, key=lambda share: (ndcg_p[share], share))


def best_gamma(found: Mapping[float, Quality], floor: float) -> float:
    """The gamma with the best dNDCG among those that keep NDCG_p: 95 % of that of gamma 0, and at least `floor`, that
    of the likes' encoder alone. Of equal ones, the smallest; 0 if no target is a dislike."""
    if found[0.0][1] is None:
        return 0.0
    needed = max(KEEP * found[0.0][0], floor)
    kept = {gamma: delta for gamma, (ndcg_p, delta) in found.items() if gamma == 0 or ndcg_p >= needed}
    return max(kept, key=lambda gamma: (kept[gamma], -gamma))
