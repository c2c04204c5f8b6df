"""Evaluation against brute force in plain Python."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import evaluate, model_scores, users_of_full_lists
from pnfrec_dist.evaluation.metrics import measures_of, summarize
from pnfrec_dist.model.dual_encoder import PNFRec


def brute_rank(scores: list[float], seen: set[int], target: int) -> int:
    """Place of the target among unseen items, best first, ties by item id."""
    candidates = [i for i in range(1, len(scores)) if i not in seen or i == target]
    return sorted(candidates, key=lambda i: (-scores[i], i)).index(target) + 1


def test_evaluate_equals_one_user_at_a_time(prepared: Path) -> None:
    data = open_prepared(prepared)
    test = data.holdout("test")
    model = PNFRec(12, EncoderSettings(hidden_size=8, max_length=3), torch.Generator(), with_negative=False)
    model.eval()
    settings = EvaluationSettings(cutoffs=(3, 10), batch_size=4)
    result = evaluate(model_scores(model, World()), test, 12, settings, World()).metrics
    ranks, listed = [], set()
    for u in range(len(test)):
        history = test.history.values[test.history.offsets[u] : test.history.offsets[u + 1]][-3:]
        seen = set(test.seen.values[test.seen.offsets[u] : test.seen.offsets[u + 1]].tolist())
        with torch.no_grad():
            alone = Ragged(np.array([0, len(history)]), history)
            hidden_BD = model.last_hidden(history_batch(alone, np.array([0]), 3, torch.device("cpu")))
            scores = (hidden_BD @ model.item_table.weight.T)[0].tolist()
        target = int(test.target_item[u])
        ranks.append(brute_rank(scores, seen, target))
        left = [i for i in range(1, 13) if i not in seen or i == target]
        listed |= set(sorted(left, key=lambda i: -scores[i])[:3])
    expected = summarize(np.array(ranks), test.target_is_positive, (3, 10), measures_of())
    assert {k: v for k, v in result.items() if "coverage" not in k} == pytest.approx(expected)
    for length in (2, 5, 10):
        left_U = [
            12 - len(set(test.seen.values[a:b])) for a, b in zip(test.seen.offsets, test.seen.offsets[1:], strict=False)
        ]
        assert users_of_full_lists(test, 12, length) == sum(left <= length for left in left_U)
    assert result["coverage_at_3"] == pytest.approx(len(listed) / 12)
