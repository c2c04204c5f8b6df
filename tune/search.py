"""Ray Tune's searcher and scheduler of a stage. Both can take the results of trials that ended before."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune.records import Record, trial_name
from tune.space import Parameter, Point, Stage, rounded

SCORE, EPOCH, SILENCE, BROKEN = "score", "epoch", "silent_seconds", "broken"
"""Keys of what a trial reports: its best validation NDCG_p@10 so far, the epoch, the seconds since its training last
reported, and the error that is about to end its process."""
ATTEMPTS = 100
"""After this many suggestions in a row that are known points, the space counts as used up."""


def listed_points(stage: Stage, seed: int) -> list[Point]:
    """All points of a grid, or those of a random search, without repeats. More samples only append points."""
    if stage.search == "grid":
        return stage.grid()
    domains = {parameter.name: _domain(parameter) for parameter in stage.parameters}
    rng, found = np.random.RandomState(seed), {}
    for _ in range(100 * stage.num_samples):  # a space may have fewer points than samples
        point = {name: plain(domain.sample(random_state=rng)) for name, domain in domains.items()}
        found.setdefault(json.dumps(point), point)
        if len(found) == stage.num_samples:
            break
    return list(found.values())


class DistinctPoints(Searcher):
    """Optuna with the results of earlier trials. First suggests points that began but did not end; none twice."""

    def __init__(self, stage: Stage, seed: int, ended: Sequence[Record], begun: Sequence[Point]) -> None:
        super().__init__(metric=SCORE, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {parameter.name: _distribution(parameter) for parameter in stage.parameters}
        seed += len(ended) + len(begun)  # does not repeat the draws of an earlier command
        self.optuna = OptunaSearch(space=space, metric=SCORE, mode="max", seed=seed, points_to_evaluate=list(begun))
        self.names = tuple(space)
        self.scores: dict[str, float | None] = {record.name: _known(record) for record in ended}
        """name -> score, for all points suggested so far; None while a trial runs"""
        self.keys: dict[str, tuple[str, str]] = {}
        """Tune's id of a trial -> (Optuna's id, name of its point)"""
        self.is_exhausted = False
        for record in ended:
            self.optuna.add_evaluated_point(record.point, _known(record))

    def suggest(self, trial_id: str) -> Any:
        """{"point": ...}, or Searcher.FINISHED once the space is used up."""
        for attempt in range(ATTEMPTS):
            key = f"{trial_id}-{attempt}"
            config = self.optuna.suggest(key)
            if not isinstance(config, dict):
                return config
            point = {name: plain(config[name]) for name in self.names}
            name = trial_name(point)
            if name not in self.scores:
                self.scores[name], self.keys[trial_id] = None, (key, name)
                return {"point": point}
            score = self.scores[name]
            self.optuna.on_trial_complete(key, {SCORE: score} if score is not None else None, error=score is None)
        self.is_exhausted = True
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key, name = self.keys[trial_id]
        if result is not None:
            self.scores[name] = 0.0 if result["failed"] else result[SCORE]
            result = {SCORE: self.scores[name]}
        self.optuna.on_trial_complete(key, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's own way to restore a search is not used."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""


def _known(record: Record) -> float:
    """The score that Optuna sees: 0 for a trial that failed."""
    return 0.0 if record.state == "failed" or record.best_score is None else record.best_score


def scheduler(stage: Stage, epochs: int, ended: Sequence[Record]) -> TrialScheduler:
    """Asynchronous successive halving with the epochs of the trials that ended; or no early stopping."""
    if stage.scheduler == "none":
        return FIFOScheduler()
    found = ASHAScheduler(
        time_attr=EPOCH,
        metric=SCORE,
        mode="max",
        max_t=epochs + 1,  # so that the scheduler stops no trial at its last epoch
        grace_period=min(stage.grace_epochs, epochs),
        reduction_factor=stage.reduction,
    )
    controller: Any = None  # neither call uses it
    for record in ended:
        seen: Any = _Seen(record.name)
        found.on_trial_add(controller, seen)
        best = -np.inf
        for entry in record.epochs:
            best = max(best, entry["score"])
            found.on_trial_result(controller, seen, {EPOCH: entry["epoch"], SCORE: best})
    return found


class _Seen:
    """The part of a trial that the scheduler reads."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _domain(parameter: Parameter) -> Any:
    """Ray Tune's domain of a parameter, for random points."""
    if not parameter.is_range or parameter.step:
        return tune.choice(parameter.grid())
    low, high = parameter.low, parameter.high
    if parameter.is_whole:
        low, high = int(low), int(high)
        return tune.lograndint(low, high + 1) if parameter.log else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if parameter.log else tune.uniform(low, high)


def _distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """Optuna's distribution of a parameter."""
    low, high, step = parameter.low, parameter.high, parameter.step
    if not parameter.is_range:
        return optuna.distributions.CategoricalDistribution(parameter.values)
    if parameter.is_whole:
        return optuna.distributions.IntDistribution(int(low), int(high), parameter.log, int(step) or 1)
    return optuna.distributions.FloatDistribution(low, high, parameter.log, step or None)


def plain(value: Any) -> Any:
    """NumPy numbers as Python numbers, rounded to remove binary noise."""
    value = value.item() if isinstance(value, np.generic) else value
    return rounded(value) if isinstance(value, float) else value
