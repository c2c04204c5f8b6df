"""The search for weights of scores against evaluating the model with each of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import spawn

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, History, LossSettings, Settings
from pnfrec_dist.data.points import Points, points_of
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import Ranked, evaluate, model_scores
from pnfrec_dist.evaluation.metrics import ndcg
from pnfrec_dist.evaluation.weight_search import GAMMAS, KEEP, SHARES, WeightSearch, is_above_zero, is_searched
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.score_weights import ScoreWeights
from pnfrec_dist.training.initial_model import build_model

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=3, history="both"),
    loss=LossSettings(1.0, 0.0, ("ce_likes=1",)),
    evaluation=EvaluationSettings(cutoffs=(10,), gamma="auto", batch_size=7),
)
SEEDS = (*range(10), 25, 40, 41, 45)
"""With history both, models of the last ones need a gamma above 0."""
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
    likes = targets.target_is_positive.astype(bool)
    users = targets.user_P if isinstance(targets, Points) else np.arange(len(targets))

    def values(weights: ScoreWeights) -> np.ndarray:
        model.encoders.weights = weights
        scores = model_scores(model, World(), weights.gamma)
        return ndcg(evaluate(scores, targets, num_items, settings.evaluation, World()).target_rank, 10)

    def delta(values_T: np.ndarray) -> float:
        return values_T[likes].mean() - values_T[~likes].mean()

    has_likes, share = settings.encoder.history == "both", 1.0
    if has_likes:
        by_share = {share: values(ScoreWeights(share))[likes].mean() for share in SHARES}
        share = max(reversed(SHARES), key=lambda share: by_share[share])
    alone, start = values(ScoreWeights(1.0)), values(ScoreWeights(share))
    best_gamma, best_values = 0.0, start
    for gamma in GAMMAS:
        found = values(ScoreWeights(share, gamma))
        if has_likes and found[likes].mean() >= alone[likes].mean() and found[~likes].mean() <= alone[~likes].mean():
            return ScoreWeights(share, gamma)
        keeps = found[likes].mean() >= (alone[likes].mean() if has_likes else KEEP * start[likes].mean())
        if keeps and delta(found) > delta(best_values):
            best_gamma, best_values = gamma, found
    is_better = has_likes or is_above_zero(best_values - start, np.where(likes, 1, -1), users)
    return ScoreWeights(share, best_gamma if is_better else 0.0)


@pytest.mark.parametrize("errors", [0.0, 1.96])
@pytest.mark.parametrize("history", ["both", "signed", "positive"])
def test_equals_evaluating_with_each_weights(
    prepared: Path, history: History, errors: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over some models; if any gain is enough, other shares and gammas are found."""
    monkeypatch.setattr("pnfrec_dist.evaluation.weight_search.SIGNIFICANT", errors)
    data = open_prepared(prepared)
    encoder = replace(SETTINGS.encoder, history=history)
    settings = replace(SETTINGS, encoder=encoder, loss=LOSSES[history])
    targets, found = of_validation(data, settings), set[ScoreWeights]()
    assert not targets.target_is_positive.all()
    for seed in SEEDS:
        model = spread(settings, data.num_items, seed)
        found.add(WeightSearch(settings, targets, model, World()).find().weights)
        expected = slow_search(settings, targets, model, data.num_items)
        model.encoders.weights = replace(expected, gamma=0.0)
        assert WeightSearch(settings, targets, model, World()).find().weights == expected
    assert (errors and history != "both") or len({weights.gamma for weights in found}) > 2
    assert errors or history != "both" or len({weights.likes_share for weights in found}) > 2


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
    assert not is_searched(Settings()), "the share is auto, but there is no encoder of likes"
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
    search = WeightSearch(settings, targets, model, World())
    values_WT = []
    for share in SHARES:
        model.encoders.weights = ScoreWeights(share)
        scores = model_scores(model, World(), 0.5)
        values_WT.append(ndcg(evaluate(scores, targets, data.num_items, settings.evaluation, World()).target_rank, 10))
    model.encoders.weights = ScoreWeights(1.0, 0.5)
    assert search.find().weights == ScoreWeights(search._best_share(np.stack(values_WT)), 0.5)


def on_ranks(world: World, prepared: Path, sharded: bool) -> None:
    data = open_prepared(prepared)
    targets, gammas = of_validation(data, SETTINGS), set[float]()
    for seed in SEEDS[-4:]:
        alone = spread(SETTINGS, data.num_items, seed)
        expected = WeightSearch(SETTINGS, targets, alone, World()).find().weights
        model, shares = spread(SETTINGS, data.num_items, seed, world if sharded else None), list[float]()
        found = WeightSearch(SETTINGS, targets, model, world, shares.append).find().weights
        assert world.gather(found) == [expected] * world.size
        assert max(shares) == 1.0 and shares.count(1.0) == 3, "told for the encoders, the shares and the gammas"
        gammas.add(found.gamma)
    assert len(gammas) > 1


@pytest.mark.parametrize("sharded", [False, True])
def test_all_ranks_find_what_one_finds(prepared: Path, sharded: bool) -> None:
    spawn(2, on_ranks, prepared, sharded)


def of_values(likes: list[bool]) -> WeightSearch:
    """A search whose targets have one user each."""
    search = WeightSearch.__new__(WeightSearch)
    search.is_positive_T, search.user_T = np.array(likes), np.arange(len(likes))
    return search


def test_likes_alone_win_ties_of_shares() -> None:
    search, values_WT = of_values([True] * 3 + [False]), np.zeros((len(SHARES), 4))
    assert search._best_share(values_WT) == 1.0
    values_WT[SHARES.index(0.4), 1] = values_WT[SHARES.index(0.8), 2] = 0.5
    values_WT[SHARES.index(0.2), 3] = 1.0  # a dislike does not count
    assert search._best_share(values_WT) == 0.8


def test_gamma_keeps_the_likes_and_lowers_dislikes_significantly() -> None:
    """NDCG_p is 1, .98, .96, .9 of what it is at gamma 0, and NDCG_n falls."""
    rng = np.random.default_rng(0)
    likes = [True] * 300 + [False] * 300
    search = of_values(likes)
    start = np.concatenate([rng.uniform(0.4, 0.6, 300), rng.uniform(0.2, 0.4, 300)])
    values_WT = np.stack([start] * len(GAMMAS))
    for place, (kept, fall) in enumerate([(1.0, 0.0), (0.98, 0.1), (0.96, 0.15), (0.9, 0.3)]):
        values_WT[place] = start * np.where(likes, kept, 1.0) - np.where(likes, 0.0, fall)
    values_WT[4:] -= 0.3 * np.array(likes)
    assert search._best_gamma(values_WT) == GAMMAS[2]
    noise = start + rng.normal(0, 0.3, (len(GAMMAS), 600))
    noise[0] = start
    assert search._best_gamma(noise) == 0.0, "what is best by chance is not significant"


@pytest.mark.parametrize(
    ("ndcg_p", "ndcg_n", "gamma"),
    [
        ([1.0, 0.9, 0.8, 0.7], [0.3, 0.2, 0.2, 0.1], GAMMAS[1]),  # the first with enough likes and few dislikes
        ([1.0, 0.9, 0.8, 0.7], [0.2, 0.1, 0.1, 0.1], 0.0),  # gamma 0 has no more dislikes than likes alone
        ([1.0, 0.7, 0.7, 0.7], [0.3, 0.2, 0.1, 0.0], 0.0),  # all others cost too many likes
        ([1.0, 0.95, 0.8, 0.7], [0.5, 0.4, 0.3, 0.1], GAMMAS[1]),  # none has few dislikes: the best difference
        ([1.0, 0.95, 0.9, 0.7], [0.5, 0.4, 0.3, 0.1], GAMMAS[2]),
    ],
)
def test_gamma_does_no_harm(ndcg_p: list[float], ndcg_n: list[float], gamma: float) -> None:
    """Likes alone have an NDCG_p of .8 and an NDCG_n of .2."""
    search = of_values([True, True, False])
    values_WT = np.array([[p, p, n] for p, n in zip(ndcg_p, ndcg_n, strict=True)])
    assert search._gamma_without_harm(values_WT, np.array([0.9, 0.7, 0.2])) == gamma


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_is_that_of_a_bootstrap_over_users(seed: int) -> None:
    """Gains just above and just below 1.96 standard errors, as drawing users with all their targets gives them."""
    rng = np.random.default_rng(seed)
    user_T = rng.integers(0, 150, 900)
    likes_T = rng.random(900) < 0.6
    gain_T = rng.normal(0, 0.2, 150)[user_T] + rng.normal(0, 0.1, 900)

    def difference(chosen_T: np.ndarray) -> float:
        gains_T, liked_T = gain_T[chosen_T], likes_T[chosen_T]
        return gains_T[liked_T].mean() - gains_T[~liked_T].mean()

    of_users = [np.flatnonzero(user_T == user) for user in range(150)]
    drawn = [difference(np.concatenate([of_users[u] for u in rng.integers(0, 150, 150)])) for _ in range(2_000)]
    error, sign_T = float(np.std(drawn)), np.where(likes_T, 1, -1)
    shifted_T = gain_T - np.where(likes_T, difference(np.arange(900)), 0.0)
    for errors, expected in ((1.7, False), (2.2, True)):
        assert is_above_zero(shifted_T + np.where(likes_T, errors * error, 0.0), sign_T, user_T) == expected
    assert not is_above_zero(np.ones(3), np.ones(3), np.zeros(3)), "one user says nothing"


def test_of_very_many_targets_some_are_enough(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_prepared(prepared)
    targets = of_validation(data, SETTINGS)
    monkeypatch.setattr("pnfrec_dist.evaluation.weight_search.MAX_TARGETS", 5)
    search = WeightSearch(SETTINGS, targets, spread(SETTINGS, data.num_items, 1), World())
    expected = np.unique(np.linspace(0, len(targets) - 1, 5).astype(int))
    assert len(targets) > 5 and search.chosen_T.tolist() == expected.tolist()
    assert not search.takes_all and 0 <= search.find().weights.likes_share <= 1
