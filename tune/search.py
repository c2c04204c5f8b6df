"""Ray Tune's searchers and schedulers, for a stage; both can be told of trials that ended before."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from tune.records import Record
from tune.space import Parameter, Point, Stage, rounded

SCORE, EPOCH = "score", "epoch"
"""Keys of what a trial reports: its best validation NDCG_p@10 so far, and the epoch."""


def listed_points(stage: Stage, seed: int) -> list[Point]:
    """All points of a grid; those of a random search, of which more samples keep the first. None twice."""
    if stage.search == "grid":
        combinations = itertools.product(*(parameter.grid() for parameter in stage.parameters))
        return [dict(zip((p.name for p in stage.parameters), values, strict=True)) for values in combinations]
    domains = {parameter.name: _domain(parameter) for parameter in stage.parameters}
    rng, found = np.random.RandomState(seed), {}
    for _ in range(100 * stage.num_samples):  # a space may have fewer points than samples
        point = {name: plain(domain.sample(random_state=rng)) for name, domain in domains.items()}
        found.setdefault(json.dumps(point), point)
        if len(found) == stage.num_samples:
            break
    return list(found.values())


def searcher(stage: Stage, seed: int, ended: Sequence[Record], begun: Sequence[Point]) -> OptunaSearch:
    """Optuna, which knows the trials that ended, and suggests first those that began and did not end."""
    domains = {parameter.name: _domain(parameter) for parameter in stage.parameters}
    space = OptunaSearch.convert_search_space(domains)
    found = OptunaSearch(space=space, metric=SCORE, mode="max", seed=seed + len(ended), points_to_evaluate=list(begun))
    for record in ended:
        failed = record.best_score is None
        found.add_evaluated_point(record.point, 0.0 if record.best_score is None else record.best_score, error=failed)
    return found


def scheduler(stage: Stage, epochs: int, ended: Sequence[Record]) -> TrialScheduler:
    """Asynchronous successive halving, which has seen the epochs of the trials that ended; or none."""
    if stage.scheduler == "none":
        return FIFOScheduler()
    found = ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode="max",
        max_t=epochs + 1,  # at the last epoch a trial ends by itself
        grace_period=min(stage.grace_epochs, epochs),
        reduction_factor=stage.reduction,
    )
    controller: Any = None  # neither call asks for it
    for record in ended:
        seen: Any = _Seen(record.name)
        found.on_trial_add(controller, seen)
        best = -np.inf
        for entry in record.epochs:
            best = max(best, entry["score"])
            found.on_trial_result(controller, seen, {EPOCH: entry["epoch"], SCORE: best})
    return found


class _Seen:
    """As much of a trial as the scheduler asks for."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _domain(parameter: Parameter) -> Any:
    """Ray Tune's."""
    if not parameter.is_range:
        return tune.choice(list(parameter.values))
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.is_whole:
        low, high = int(low), int(high)
        if parameter.log:
            return tune.lograndint(low, high + 1)
        return tune.qrandint(low, high, int(step)) if step else tune.randint(low, high + 1)
    if parameter.log:
        return tune.loguniform(low, high)
    return tune.quniform(low, high, step) if step else tune.uniform(low, high)


def plain(value: Any) -> Any:
    """Of numpy's numbers Python's, without the noise of binary fractions."""
    value = value.item() if isinstance(value, np.generic) else value
    return rounded(value) if isinstance(value, float) else value
