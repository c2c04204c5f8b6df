"""Groups recorded trainings by model or by loss weight, computes means and intervals, and writes them as CSV."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.evaluation.bootstrap import Interval, Spread, paired_intervals, paired_point_intervals, spread
from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION, POINTS, measures_of
from pnfrec_dist.files.tables import write_csv
from pnfrec_dist.files.text import counted
from pnfrec_dist.training.held_out import MODEL
from pnfrec_dist.training.result import Result, TestPoints, TestUsers

REFERENCE = "sasrec_p"
"""The model with which others are compared, unless a comparison names another one."""


@dataclass(frozen=True)
class Recorded:
    """A training with a result."""

    model: str
    seed: int
    result: Result
    users: TestUsers
    points: TestPoints | None
    key: str
    """identifies its run in MLflow"""
    has_model: bool
    """whether its model was exported"""
    weight: str = ""
    """the loss weight that a curve varies, or "" for a row of the table"""
    value: float = math.nan
    """value of that weight"""

    @property
    def best_validation(self) -> float:
        """NDCG_p@10 of the best epoch."""
        return max(epoch.metrics[LOGGED_SELECTION] for epoch in self.result.epochs)


@dataclass
class Comparison:
    """The models of one data set with all their seeds; models in the order given."""

    runs: dict[str, list[Recorded]]
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    """model -> metric -> the paper's figure"""
    reference: str = REFERENCE
    """the model with which the others are compared"""

    @property
    def seeds(self) -> str:
        """Number of seeds per model: "5 seeds", "2 to 4 seeds"."""
        return counted({len(runs) for runs in self.runs.values()}, "seed")

    def any_run(self) -> Recorded:
        return next(iter(self.runs.values()))[0]

    @property
    def measures(self) -> list[str]:
        """evaluation.measures of the trainings; the default for older ones without this setting."""
        return self.any_run().result.settings["evaluation"].get("measures", list(EvaluationSettings.measures))

    @property
    def own_terms(self) -> list[str]:
        """The further terms of loss.terms of the trainings, without their weights; older ones have none."""
        entries = [entry for runs in self.runs.values() for entry in runs[0].result.settings["loss"].get("terms", [])]
        return list(dict.fromkeys(entry.rpartition("=")[0] for entry in entries))

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """Model or baseline -> metric -> spread over seeds. A baseline has one value and no SD."""
        if not self.runs:
            return {}
        found = {}
        for model, runs in self.runs.items():
            names = runs[0].result.test
            found[model] = {m: spread([run.result.test[m] for run in runs if m in run.result.test]) for m in names}
        for floor, metrics in self.any_run().result.floors.items():
            found[floor] = {name: Spread(value, math.nan) for name, value in metrics.items()}
        return found

    def shared_seeds(self, model: str) -> int:
        """Number of seeds that a model shares with the reference; for a baseline, all seeds of the reference."""
        reference = {run.seed for run in self.runs.get(self.reference, [])}
        return len(reference & {run.seed for run in self.runs[model]} if model in self.runs else reference)

    def intervals(self, metrics: Sequence[str]) -> dict[str, dict[str, Interval]]:
        """Model or baseline -> metric -> difference from the reference, over the seeds that both have."""
        found: dict[str, dict[str, Interval]] = {}
        for model in self.runs:
            pairs = self._shared(model)
            if model != self.reference and pairs:
                found[model] = self._differences(metrics, [own for own, _ in pairs], [other for _, other in pairs])
        reference = self.runs.get(self.reference, [])
        for floor in reference[0].result.floors if reference else ():
            found[floor] = self._differences(metrics, reference[:1], reference, floor)
        return found

    def users_of_shared_seeds(self, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(target ranks of the model [S, U], of the reference, whether the target is a like [U]), over the seeds that
        both have. There must be one."""
        pairs = self._shared(model)
        ranks = (np.stack([run.users.target_rank[MODEL] for run in runs]) for runs in zip(*pairs, strict=True))
        return (*ranks, pairs[0][0].users.target_is_positive.astype(bool))  # pyright: ignore[reportReturnType]

    def _shared(self, model: str) -> list[tuple[Recorded, Recorded]]:
        """The model's and the reference's trainings of the seeds that both have."""
        reference = {run.seed: run for run in self.runs.get(self.reference, [])}
        return [(run, reference[run.seed]) for run in self.runs[model] if run.seed in reference]

    def _differences(
        self, metrics: Sequence[str], own: list[Recorded], others: list[Recorded], name: str = MODEL
    ) -> dict[str, Interval]:
        """name: whose ranks in `own` are compared with those of the models in `others`."""
        measures = measures_of(self.measures)
        own_SU = np.stack([run.users.target_rank[name] for run in own])
        other_SU = np.stack([run.users.target_rank[MODEL] for run in others])
        is_positive = own[0].users.target_is_positive.astype(bool)
        found = paired_intervals(metrics, own_SU, other_SU, is_positive, measures=measures)
        of_points = [metric.removeprefix(POINTS) for metric in metrics if metric.startswith(POINTS)]
        if of_points and (both := _points(own, others, name)):
            own_SP, other_SP, points = both
            likes_P = points.target_is_positive.astype(bool)
            by_name = paired_point_intervals(of_points, own_SP, other_SP, likes_P, points.user, measures=measures)
            found |= {f"{POINTS}{metric}": interval for metric, interval in by_name.items()}
        return found


def _points(own: list[Recorded], others: list[Recorded], name: str) -> tuple[np.ndarray, np.ndarray, TestPoints] | None:
    """(target ranks under `name` [S, P], those of the models in `others`, the points); None unless all have the same
    points."""
    first = own[0].points
    ranks = []
    for runs, which in ((own, name), (others, MODEL)):
        for run in runs:
            if first is None or run.points is None or not np.array_equal(run.points.user, first.user):
                return None
        ranks.append(np.stack([run.points.target_rank[which] for run in runs if run.points is not None]))
    return (*ranks, first) if first is not None else None  # pyright: ignore[reportReturnType]


def curve_points(runs: Iterable[Recorded]) -> dict[float, dict[str, Spread]]:
    """Value of the varied weight -> metric -> spread over seeds; the validation score is the best epoch's."""
    values: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for metric, value in run.result.test.items():
            values[run.value][metric].append(value)
        values[run.value][LOGGED_SELECTION].append(run.best_validation)
    return {value: {m: spread(found) for m, found in metrics.items()} for value, metrics in values.items()}


def write_tables(directory: Path, comparison: Comparison, curves: dict[str, list[Recorded]]) -> None:
    """Writes runs.csv, learning_curves.csv, comparison.csv, and one file for each curve."""
    runs = [run for of_model in comparison.runs.values() for run in of_model]
    names = list(dict.fromkeys(name for run in runs for name in run.result.test))
    write_csv(
        directory / "runs.csv",
        ["model", "seed", "best_epoch", "epochs", "seconds", *names],
        (
            [run.model, run.seed, run.result.best_epoch, len(run.result.epochs), round(run.result.seconds, 1)]
            + [run.result.test.get(name, "") for name in names]
            for run in runs
        ),
    )
    logged = list(dict.fromkeys(name for run in runs for e in run.result.epochs for name in e.metrics))
    write_csv(
        directory / "learning_curves.csv",
        ["model", "seed", "epoch", *logged],
        (
            [run.model, run.seed, e.epoch, *(e.metrics.get(name, "") for name in logged)]
            for run in runs
            for e in run.result.epochs
        ),
    )
    spreads, intervals = comparison.spreads(), comparison.intervals(names)
    write_csv(
        directory / "comparison.csv",
        ["model", "metric", "seeds", "mean", "sd", "published", f"minus_{comparison.reference}", "low", "high"],
        (
            [
                model,
                metric,
                found.count or "",
                found.mean,
                _plain(found.sd),
                comparison.published.get(model, {}).get(metric, ""),
            ]
            + ([of.difference, of.low, of.high] if (of := intervals.get(model, {}).get(metric)) else ["", "", ""])
            for model, metrics in spreads.items()
            for metric, found in metrics.items()
        ),
    )
    for weight, along in curves.items():
        points = curve_points(along)
        write_csv(
            directory / f"{weight}.csv",
            [weight, "metric", "seeds", "mean", "sd"],
            (
                [value, metric, found.count, found.mean, _plain(found.sd)]
                for value in sorted(points)
                for metric, found in points[value].items()
            ),
        )


def _plain(value: float) -> float | str:
    return "" if math.isnan(value) else value
