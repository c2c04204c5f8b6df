"""The search for weights of scores against evaluating the model with each of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import spawn

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, History, LossSettings, Settings
from pnfrec_dist.data.points import points_of
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import Ranked, evaluate, model_scores
from pnfrec_dist.evaluation.weight_search import GAMMAS, KEEP, SHARES, WeightSearch, best_gamma, best_share, is_searched
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreWeights
from pnfrec_dist.training.initial_model import build_model

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=3, history="both"),
    loss=LossSettings(1.0, 0.0, ("ce_likes=1",)),
    evaluation=EvaluationSettings(cutoffs=(10,), gamma="auto", batch_size=7),
)
LOSSES = {"both": SETTINGS.loss, "signed": LossSettings(1.0), "positive": LossSettings(0.45, 0.25)}


def of_validation(data: PreparedData, settings: Settings) -> Ranked:
    """Many points, or the last interactions with negatives."""
    points = points_of(data, "validation", settings.encoder.history, settings.evaluation)
    return points if points is not None else data.holdout("validation", settings.encoder.history, with_negative=True)


def spread(settings: Settings, num_items: int, seed: int, world: World | None = None) -> PNFRec:
    """A model whose parts give different lists."""
    model = build_model(num_items, replace(settings, seed=seed), world)
    with torch.no_grad():
        model.item_table.weight.mul_(20)
        for parameter in model.encoders.parameters():
            parameter.copy_(parameter * (3 if parameter.ndim > 1 else 1))
    return model.eval()


def slow_search(settings: Settings, targets: Ranked, model: PNFRec, num_items: int) -> ScoreWeights:
    """Evaluates the model with each weights, lists included, and goes through the rules in words."""

    def quality(weights: ScoreWeights) -> tuple[float, float]:
        model.encoders.weights = weights
        scores = model_scores(model, World(), weights.gamma)
        metrics = evaluate(scores, targets, num_items, settings.evaluation, World()).metrics
        return metrics["ndcg_p_at_10"], metrics["ndcg_delta_at_10"]

    share, of_likes = 1.0, 0.0
    if settings.encoder.history == "both":
        by_share = [(quality(ScoreWeights(share))[0], share) for share in SHARES]
        (_, share), of_likes = max(by_share), by_share[-1][0]
    start = quality(ScoreWeights(share))
    best, best_delta = 0.0, start[1]
    for gamma in GAMMAS[1:]:
        ndcg_p, delta = quality(ScoreWeights(share, gamma))
        if ndcg_p >= KEEP * start[0] and ndcg_p >= of_likes and delta > best_delta:
            best, best_delta = gamma, delta
    return ScoreWeights(share, best)


@pytest.mark.parametrize("history", ["both", "signed", "positive"])
def test_equals_evaluating_with_each_weights(prepared: Path, history: History) -> None:
    """Over ten models, with other shares and gammas found."""
    data = open_prepared(prepared)
    encoder = replace(SETTINGS.encoder, history=history)
    settings = replace(SETTINGS, encoder=encoder, loss=LOSSES[history])
    targets, found = of_validation(data, settings), set[ScoreWeights]()
    assert not targets.target_is_positive.all()
    for seed in range(10):
        model = spread(settings, data.num_items, seed)
        found.add(WeightSearch(settings, targets, model, World()).find().weights)
        expected = slow_search(settings, targets, model, data.num_items)
        model.encoders.weights = replace(expected, gamma=0.0)
        assert WeightSearch(settings, targets, model, World()).find().weights == expected
    assert len({weights.gamma for weights in found}) > 2
    assert history != "both" or len({weights.likes_share for weights in found}) > 2


def test_the_found_scores_are_those_of_the_model(prepared: Path) -> None:
    """`evaluate` with them is `evaluate` of the model, whose encoders run again."""
    data = open_prepared(prepared)
    targets, model = of_validation(data, SETTINGS), spread(SETTINGS, data.num_items, 3)
    search = WeightSearch(SETTINGS, targets, model, World())
    found = search.find()
    model.encoders.weights = found.weights
    expected, metrics = (
        evaluate(scores, targets, data.num_items, SETTINGS.evaluation, World()).metrics
        for scores in (model_scores(model, World(), 0.2), found.score_users(model, replace(found.weights, gamma=0.2)))
    )
    assert search.takes_all and metrics == expected


def test_given_weights_stay(prepared: Path) -> None:
    data = open_prepared(prepared)
    encoder = replace(SETTINGS.encoder, likes_share=0.25)
    settings = replace(SETTINGS, encoder=encoder, evaluation=replace(SETTINGS.evaluation, gamma=0.15))
    assert is_searched(SETTINGS) and is_searched(replace(SETTINGS, encoder=encoder)) and not is_searched(settings)
    model = spread(settings, data.num_items, 1)
    search = WeightSearch(settings, of_validation(data, settings), model, World())
    assert search.find().weights == ScoreWeights(0.25, 0.15) and search.metrics(search.find().weights) == {}
    settings = replace(settings, evaluation=SETTINGS.evaluation)
    model = spread(settings, data.num_items, 1)
    search = WeightSearch(settings, of_validation(data, settings), model, World())
    assert search.find().weights.likes_share == 0.25 and search.metrics(search.find().weights).keys() == {"gamma"}


def test_a_share_is_sought_at_the_given_gamma(prepared: Path) -> None:
    data = open_prepared(prepared)
    settings = replace(SETTINGS, evaluation=replace(SETTINGS.evaluation, gamma=0.5))
    targets, model = of_validation(data, settings), spread(settings, data.num_items, 2)
    found = WeightSearch(settings, targets, model, World()).find().weights
    scores = {}
    for share in SHARES:
        model.encoders.weights = ScoreWeights(share)
        metrics = evaluate(model_scores(model, World(), 0.5), targets, data.num_items, settings.evaluation, World())
        scores[share] = metrics.metrics["ndcg_p_at_10"]
    assert found == ScoreWeights(best_share(scores), 0.5)


def on_ranks(world: World, prepared: Path, sharded: bool) -> None:
    data = open_prepared(prepared)
    targets = of_validation(data, SETTINGS)
    for seed in range(4):
        alone = spread(SETTINGS, data.num_items, seed)
        expected = WeightSearch(SETTINGS, targets, alone, World()).find().weights
        model = spread(SETTINGS, data.num_items, seed, world if sharded else None)
        assert world.gather(WeightSearch(SETTINGS, targets, model, world).find().weights) == [expected] * world.size


@pytest.mark.parametrize("sharded", [False, True])
def test_all_ranks_find_what_one_finds(prepared: Path, sharded: bool) -> None:
    spawn(2, on_ranks, prepared, sharded)


def test_likes_alone_win_ties_of_shares() -> None:
    assert best_share({0.0: 0.1, 0.4: 0.3, 0.8: 0.3, 1.0: 0.2}) == 0.8
    assert best_share(dict.fromkeys(SHARES, 0.0)) == 1.0


def test_gamma_keeps_the_likes_and_needs_dislikes() -> None:
    found = {0.0: (0.2, 0.10), 0.1: (0.195, 0.12), 0.2: (0.191, 0.13), 0.3: (0.189, 0.15)}
    assert best_gamma(found, floor=0.0) == 0.2
    assert best_gamma(found, floor=0.192) == 0.1
    assert best_gamma(found, floor=0.2) == 0.0
    assert best_gamma(dict.fromkeys(found, (0.2, 0.1)), floor=0.0) == 0.0
    assert best_gamma(dict.fromkeys(found, (0.2, None)), floor=0.0) == 0.0


def test_of_very_many_targets_some_are_enough(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_prepared(prepared)
    targets = of_validation(data, SETTINGS)
    monkeypatch.setattr("pnfrec_dist.evaluation.weight_search.MAX_TARGETS", 5)
    search = WeightSearch(SETTINGS, targets, spread(SETTINGS, data.num_items, 1), World())
    expected = np.unique(np.linspace(0, len(targets) - 1, 5).astype(int))
    assert len(targets) > 5 and search.chosen_T.tolist() == expected.tolist()
    assert not search.takes_all and 0 <= search.find().weights.likes_share <= 1
