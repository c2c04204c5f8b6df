"""Retrieval and evaluation against brute force in plain Python."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pnfrec_dist.config import EncoderSettings, EvaluationSettings, LossSettings
from pnfrec_dist.data.prepared import Ragged, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation import evaluate, model_scores, popularity_scores
from pnfrec_dist.metrics import summarize
from pnfrec_dist.model.dual_encoder import DualEncoder
from pnfrec_dist.retrieval import hide_seen, target_ranks, top_items


def brute_rank(scores: list[float], seen: set[int], target: int) -> int:
    """Place of the target among unseen items, best first, ties by item id."""
    candidates = [i for i in range(1, len(scores)) if i not in seen or i == target]
    return sorted(candidates, key=lambda i: (-scores[i], i)).index(target) + 1


@pytest.mark.parametrize("seed", range(30))
def test_ranks_equal_brute_force_with_ties_and_seen_items(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, items = 6, 15
    scores = torch.from_numpy(rng.integers(0, 5, (users, items + 1)).astype(float))
    scores[:, 0] = -torch.inf
    seen_rows = [rng.choice(np.arange(1, items + 1), rng.integers(0, items), replace=False) for _ in range(users)]
    offsets = np.cumsum([0] + [len(r) for r in seen_rows])
    seen = Ragged(offsets, np.concatenate(seen_rows).astype(np.int32))
    target_B = torch.from_numpy(rng.integers(1, items + 1, users))
    expected = [brute_rank(scores[u].tolist(), set(seen_rows[u].tolist()), int(target_B[u])) for u in range(users)]
    hidden = hide_seen(scores, seen, np.arange(users), keep_B=target_B)
    assert target_ranks(hidden, target_B).tolist() == expected
    for u, row in enumerate(top_items(hidden, 50).tolist()):
        listed = [i for i in row if i]
        assert len(listed) == len(set(listed))
        assert set(listed) == set(range(1, items + 1)) - (set(seen_rows[u].tolist()) - {int(target_B[u])})


def test_evaluate_equals_one_user_at_a_time(prepared: Path) -> None:
    data = open_prepared(prepared)
    test = data.holdout("test")
    model = DualEncoder(12, EncoderSettings(hidden_size=8, max_length=3), LossSettings(), torch.Generator())
    model.eval()
    settings = EvaluationSettings(cutoffs=(3, 10), batch_size=4)
    result = evaluate(model_scores(model, test, World()), test, 12, settings, World())
    ranks, listed = [], set()
    for u in range(len(test)):
        history = test.positive.values[test.positive.offsets[u] : test.positive.offsets[u + 1]][-3:]
        seen = set(test.seen.values[test.seen.offsets[u] : test.seen.offsets[u + 1]].tolist())
        with torch.no_grad():
            scores = model.scores(torch.tensor([history.tolist()]), torch.tensor([len(history) - 1]))[0].tolist()
        target = int(test.target_item[u])
        ranks.append(brute_rank(scores, seen, target))
        left = [i for i in range(1, 13) if i not in seen or i == target]
        listed |= set(sorted(left, key=lambda i: -scores[i])[:3])
    expected = summarize(np.array(ranks), test.target_is_positive, (3, 10))
    assert {k: v for k, v in result.items() if "coverage" not in k} == pytest.approx(expected)
    assert result["coverage_at_3"] == pytest.approx(len(listed) / 12)


def test_popularity_ranks_by_train_counts(prepared: Path) -> None:
    data = open_prepared(prepared)
    score = popularity_scores(data.item_counts(), World())
    assert score(np.array([0, 1])).shape == (2, 13)
    assert top_items(score(np.array([0])), 3).tolist() == [[12, 11, 10]]


def test_a_score_that_is_nan_never_flatters() -> None:
    """A diverged model ranks its targets after all 4 items, and an item of unknown score counts as ahead."""
    lost = torch.full((1, 5), torch.nan)
    assert target_ranks(lost, torch.tensor([2])).item() > 4
    partly = torch.tensor([[-torch.inf, 3.0, torch.nan, 1.0]])
    assert target_ranks(partly, torch.tensor([1])).tolist() == [2]
