"""Lists equal plain Python over all scores: users with a history, with dislikes only, with nothing, with everything
seen; hidden items; gamma."""

import math

import numpy as np
import pytest
import torch

from pnfrec_dist.config.settings import EncoderSettings, History
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.recommender import Recommender, Users
from pnfrec_dist.model.dual_encoder import PNFRec

ITEMS, K = 30, 6
CPU = torch.device("cpu")


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.cumsum([0] + [len(r) for r in rows]), np.array([i for r in rows for i in r], dtype=np.int32))


def model(alpha: float = 0.45, history: History = "positive") -> PNFRec:
    encoder = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, history=history)
    return PNFRec(ITEMS, encoder, torch.Generator().manual_seed(1), with_negative=alpha > 0).eval()


LIKED = [[1, 2, 3, 4, 5, 6], [7], [], [], list(range(1, 31)), [8, 9]]
DISLIKED = [[10, 11], [], [12, 13, 14, 15, 16], [], [], [17]]
LIKES_V = np.array([0, *(item * item % 17 for item in range(1, ITEMS + 1))])


def signed_history(liked: list[int], disliked: list[int]) -> list[int]:
    return [*(-item for item in disliked), *liked]


def plain_scores(found: PNFRec, liked: list[int], disliked: list[int], gamma: float) -> list[float]:
    """Of the items 1..N, one by one. A model that reads signs also ranks for dislikes alone."""
    reads_signs = found.encoders.main.signs is not None
    read = signed_history(liked, disliked) if reads_signs else liked

    def dot(hidden: torch.Tensor, item: int) -> float:
        return float(hidden @ found.item_table.weight[item])

    with torch.no_grad():
        positive = found.last_hidden(history_batch(ragged([read]), np.array([0]), found.max_length, CPU))[0]
        disliked_batch = history_batch(
            ragged([read if reads_signs else disliked]), np.array([0]), found.max_length, CPU
        )
        negative = found.last_negative_hidden(disliked_batch)[0]
        table_VD = found.item_table.weight
        unit = [table_VD[item] / table_VD[item].norm() for item in disliked[-4:]]
        scores = []
        for item in range(1, ITEMS + 1):
            popularity = math.log(1 + LIKES_V[item])
            penalty = gamma * dot(negative, item) if disliked or (reads_signs and read) else 0.0
            if read:
                scores.append(dot(positive, item) - penalty)
            elif gamma or not unit:
                scores.append(popularity - penalty)
            else:
                mean = torch.stack(unit).mean(0)
                cosine = float(table_VD[item] @ mean / table_VD[item].norm() / mean.norm())
                scores.append(popularity * (1 - max(cosine, 0.0)))
    return scores


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("hidden", [set[int](), {2, 7, 20, 21}])
@pytest.mark.parametrize("history", ["positive", "signed", "both"])
def test_lists_equal_sorting_all_scores(gamma: float, hidden: set[int], history: History) -> None:
    found, read = model(history=history), LIKED
    if history != "positive":
        read = [signed_history(liked, disliked) for liked, disliked in zip(LIKED, DISLIKED, strict=True)]
    seen = [sorted({*liked, *disliked}) for liked, disliked in zip(LIKED, DISLIKED, strict=True)]
    users = Users(ragged(read), ragged(DISLIKED), ragged(seen))
    is_hidden_V = np.isin(np.arange(ITEMS + 1), list(hidden)) if hidden else None
    rows = np.array([5, 0, 2, 3, 1, 4, 2])
    ranking = Recommender(found, LIKES_V, is_hidden_V).rank(users, rows, K, gamma)
    for place, row in enumerate(rows):
        scores = plain_scores(found, LIKED[row], DISLIKED[row], gamma)
        left = [item for item in range(1, ITEMS + 1) if item not in seen[row] and item not in hidden]
        expected = sorted(left, key=lambda item: (-scores[item - 1], item))[:K]
        listed = ranking.items_BK[place].tolist()
        assert listed == expected + [0] * (K - len(expected))
        wanted = [scores[item - 1] for item in expected]
        assert ranking.scores_BK[place].tolist()[: len(wanted)] == pytest.approx(wanted, abs=1e-5)


def test_a_list_does_not_depend_on_who_is_asked_for_beside_it() -> None:
    found = model()
    users = Users(ragged(LIKED), ragged(DISLIKED), ragged(LIKED))
    together = Recommender(found, LIKES_V).rank(users, np.arange(len(LIKED)), K, 0.2)
    for row in range(len(LIKED)):
        alone = Recommender(found, LIKES_V).rank(users, np.array([row]), K, 0.2)
        assert alone.items_BK[0].tolist() == together.items_BK[row].tolist()


def test_gamma_needs_a_negative_encoder() -> None:
    users = Users(ragged([[1]]), ragged([[2]]), ragged([[1, 2]]))
    with pytest.raises(InputError, match=r"gamma is 0\.5, but the model does not predict dislikes"):
        Recommender(model(alpha=0.0), LIKES_V).rank(users, np.array([0]), K, 0.5)
