"""Evaluates a trained model at several gammas, the weights with which the score as next dislike is subtracted.

B users of a batch, U users of a split.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.data.points import Points, points_of
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.holdout import Evaluation, Ranked, evaluate, users_of_full_lists
from pnfrec_dist.evaluation.metrics import (
    HEADLINE_CUTOFF,
    HEADLINE_MEASURES,
    POINTS,
    SELECTION_METRIC,
    measures_of,
    metric_title,
    of_points,
    summarize,
)
from pnfrec_dist.files.atomic import require_writable, write_json, writing
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.files.text import score
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.recommender import Recommender
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.training.held_out import search_targets

SEARCHED = (SELECTION_METRIC, *(f"ndcg_{group}_at_{HEADLINE_CUTOFF}" for group in ("n", "delta")))


def run(settings: EvaluateSettings) -> int:
    """Prints the tables and writes the file. Raises InputError if the model was trained on other data."""
    out = Path(settings.out)
    if settings.out:
        with _writing(out):
            require_writable(out)  # better to find this out now than at the end
    trained = open_trained(settings.run, settings.data_dir)
    data = open_prepared(Location(settings.data_dir) / trained.settings.dataset).require_whole("validation", "test")
    if trained.data_digest != data.manifest.digest:
        way_out = "use --data-dir to say where that state is"
        raise InputError(f"{settings.run} was trained on another state of the data than {data.directory}; {way_out}")
    own = trained.gamma(None)
    if trained.model.encoders.likes is not None:
        print(f"likes' share {trained.model.encoders.weights.likes_share:g} (encoder.likes_share)\n", flush=True)
    gammas = sorted({0.0, own, *settings.gammas}) if trained.model.encoders.predicts_dislikes else [0.0]
    if gammas == [0.0] and any(settings.gammas):
        print("note: this model predicts no dislikes (loss.alpha 0), so gamma is 0", file=sys.stderr)
    split, targets = Split(trained, data, "validation"), search_targets(trained.settings, data)
    found = _searched(split, targets, gammas)
    validation = {gamma: metrics[SELECTION_METRIC] for gamma, metrics in found.items()}
    by_score = sorted(gammas, key=lambda gamma: (-validation[gamma], gamma))
    best = by_score[0]
    strict = max(gamma for gamma in gammas if validation[gamma] >= settings.keep * validation[best])
    print(f"best on validation: gamma {best:g}; largest that keeps {settings.keep:.0%} of it: {strict:g}\n", flush=True)
    shown = sorted({0.0, own, strict, *[gamma for gamma in by_score if gamma][:1]})
    split = Split(trained, data, "test")
    tested = {gamma: split.groups(split.evaluated(gamma), settings.few) for gamma in shown}
    measures = measures_of(trained.settings.evaluation.measures)
    columns = [name for name in measures if name in HEADLINE_MEASURES or name not in measures_of()]
    full = users_of_full_lists(split.holdout, len(trained.num_positive_V) - 1, HEADLINE_CUTOFF)
    if full > len(split.holdout) / 2:
        what = f"{full:,} of {len(split.holdout):,} test users have seen all but {HEADLINE_CUTOFF} items or fewer"
        print(f"WARNING: {what}; for them, HR@{HEADLINE_CUTOFF} is 1 whatever the model", file=sys.stderr)
    for group, count in split.group_sizes(settings.few).items():
        print(f"test, {group} ({count} users)")
        print(_table({gamma: groups[group] for gamma, groups in tested.items()}, columns), end="\n\n")
    many = {gamma: found for gamma in shown if (found := split.of_points(gamma))}
    if many:
        print("test, many points of each user")
        print(_table(many, columns, POINTS), end="\n\n")
    if settings.out:
        content = {
            "run": settings.run,
            "best_gamma": best,
            "largest_kept_gamma": strict,
            "keep": settings.keep,
            "training_gamma": own,
            "validation": validation,
            "validation_metrics": found,
            "test": tested,
            "test_points": many,
        }
        with _writing(out):
            write_json(out, content, indent=1)
    return 0


def _searched(split: "Split", targets: Ranked, gammas: Sequence[float]) -> dict[float, dict[str, float]]:
    """Gamma -> NDCG_p@10 on validation, and NDCG_n and dNDCG if some targets are dislikes. Prints them."""
    names = SEARCHED[: 1 if targets.target_is_positive.all() else None]
    what = "many points of each user" if isinstance(targets, Points) else "last interactions"
    print(f"validation, {what} ({len(targets):,})")
    titles = [f"{metric_title(name):>9}" for name in names]
    print("  ".join([f"{'gamma':>6}", *titles]), flush=True)
    found = {}
    for gamma in gammas:
        metrics = split.evaluated(gamma, targets).metrics
        found[gamma] = {name: metrics[name] for name in names}
        scores = [f"{score(metrics[name]):>{len(title)}}" for name, title in zip(names, titles, strict=True)]
        print("  ".join([f"{gamma:>6g}", *scores]), flush=True)
    return found


class Split:
    """The users of "validation" or "test", and how a model ranks for them."""

    def __init__(self, trained: Exported, data: PreparedData, name: str) -> None:
        self.settings, self.data, self.name = trained.settings, data, name
        self.holdout = data.holdout(name, trained.settings.encoder.history, with_negative=True)
        self.likes_U = data.holdout(name, "positive").history.lengths
        self.recommender = Recommender(trained.model.eval(), trained.num_positive_V)

    def evaluated(self, gamma: float, targets: Ranked | None = None) -> Evaluation:
        """Ranks and metrics of all users, or of other targets."""
        ranked = self.holdout if targets is None else targets
        scores = self.recommender.of_holdout(gamma)
        return evaluate(scores, ranked, self.data.num_items, self.settings.evaluation, World())

    def of_points(self, gamma: float) -> dict[str, float]:
        """Metrics of many points; empty if there are none."""
        points = points_of(self.data, self.name, self.settings.encoder.history, self.settings.evaluation)
        return of_points(self.evaluated(gamma, points).metrics) if points is not None else {}

    def groups(self, found: Evaluation, few: int) -> dict[str, dict[str, float]]:
        """Metrics of all users, and of those with few likes."""
        is_positive_U = self.holdout.target_is_positive.astype(bool)
        evaluation = self.settings.evaluation
        measures = measures_of(evaluation.measures)
        return {
            name: summarize(found.target_rank[chosen_U], is_positive_U[chosen_U], evaluation.cutoffs, measures)
            for name, chosen_U in self._chosen(few).items()
        }

    def group_sizes(self, few: int) -> dict[str, int]:
        return {name: int(chosen_U.sum()) for name, chosen_U in self._chosen(few).items()}

    def _chosen(self, few: int) -> dict[str, np.ndarray]:
        has_few_U = self.likes_U <= few
        found = {"all": np.ones_like(has_few_U), f"at most {few} likes": has_few_U}
        return {name: chosen_U for name, chosen_U in found.items() if chosen_U.any()}


def _table(rows: dict[float, dict[str, float]], shown: Sequence[str], start: str = "") -> str:
    """shown: names of measures; start: of the names of metrics."""
    columns = [f"{name}_{group}_at_10" for name in shown for group in "pn"]
    columns += [f"{name}_delta_at_10" for name in shown]
    head = ["gamma", *map(metric_title, columns)]
    lines = [[f"{gamma:g}", *(score(metrics.get(start + name)) for name in columns)] for gamma, metrics in rows.items()]
    return text_table(head, lines, ">" * len(head), first_width=6, other_width=9)


def _writing(out: Path) -> AbstractContextManager[None]:
    return writing(f"--out {out}", "name another file")
