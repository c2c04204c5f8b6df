"""Evaluates lists of another system on holdout users, beside a model and the popularity rankings.

R rows of the lists, U users or points.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.points import Points, required_points
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.baselines import BASELINES, popularity_scores
from pnfrec_dist.evaluation.bootstrap import Interval, paired_intervals, paired_point_intervals
from pnfrec_dist.evaluation.holdout import Evaluation, Ranked, evaluate
from pnfrec_dist.evaluation.metrics import (
    HEADLINE_CUTOFF,
    SELECTION_METRIC,
    coverage,
    measures_of,
    metric_title,
    of_points,
    summarize,
)
from pnfrec_dist.files.atomic import write_json, writing
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.files.text import counted, score
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.gamma_search import Split
from pnfrec_dist.inference.other_lists import ListRows, Lists, lists_of, read_rows
from pnfrec_dist.inference.trained_model import open_trained

SHOWN = tuple(f"{name}_at_{HEADLINE_CUTOFF}" for name in ("hr_p", "ndcg_p", "ndcg_n", "ndcg_delta"))
COMPARED = (SELECTION_METRIC, f"ndcg_delta_at_{HEADLINE_CUTOFF}")
"""The metrics with an interval of the difference."""


@dataclass(frozen=True)
class Protocol:
    """Data and settings of an evaluation, and the model beside it if there is one."""

    data: PreparedData
    split: str
    evaluation: EvaluationSettings
    trained: Exported | None

    def points(self) -> Points:
        """What lists for many points are compared with. Raises InputError for data without points."""
        return required_points(self.data, self.split, "signed", self.evaluation)


def protocol_of(settings: EvaluateSettings, asking: str) -> Protocol:
    """asking: the flag that needs a data set. Raises InputError without one, and for a model of other data."""
    trained = open_trained(settings.run, settings.data_dir) if settings.run else None
    dataset = settings.dataset or (trained.settings.dataset if trained is not None else "")
    if not dataset:
        raise InputError(f"{asking} needs --dataset, the prepared data set whose users the lists are for, or --run")
    data = open_prepared(Location(settings.data_dir) / dataset).require_whole(settings.split)
    if trained is not None and trained.data_digest != data.manifest.digest:
        raise InputError(
            f"{settings.run} was trained on another state of the data than {data.directory}; "
            "use --data-dir to say where that state is"
        )
    evaluation = trained.settings.evaluation if trained is not None else EvaluationSettings()
    evaluation = replace(evaluation, points=settings.points)  # the same with a model and without
    return Protocol(data, settings.split, evaluation, trained)


def run(settings: EvaluateSettings) -> int:
    """Prints the tables. Raises InputError for files that cannot be read and for a model of other data."""
    protocol = protocol_of(settings, "--lists")
    rows = read_rows(Path(settings.lists), protocol.data, protocol.split)
    metrics: dict[str, dict[str, float]] = {}
    for reason, count in rows.left_out.items():
        _note(f"left out: {counted(count, 'row')} of {reason}" if count else "")
    for ranked, target_R in comparisons(protocol, rows):
        many = isinstance(ranked, Points)
        title = f"{protocol.split}, {'many points of each user' if many else 'last interactions'} ({len(ranked):,})"
        lists = lists_of(rows, target_R, ranked)
        found = _evaluated(protocol, lists, ranked)
        print(f"{title}\n{_table(found, ranked)}", end="\n\n")
        for text in _notes(lists, ranked, protocol):
            _note(text)
        for name, of in found.items():
            metrics.setdefault(name, {}).update(of_points(of.metrics) if many else of.metrics)
    if settings.out:
        with writing(f"--out {settings.out}", "name another file"):
            write_json(Path(settings.out), metrics, indent=1)
    return 0


def comparisons(protocol: Protocol, rows: ListRows) -> Iterator[tuple[Ranked, np.ndarray]]:
    """What the lists are for, each with the target of each row, or -1: last interactions, and points."""
    data, split = protocol.data, protocol.split
    is_of_point_R = rows.point_R >= 0
    if not is_of_point_R.all():
        yield data.holdout(split), np.where(is_of_point_R, -1, rows.user_R)
    else:
        _note("no list is for a last interaction (an empty `point`), so these are not evaluated")
    if not is_of_point_R.any():
        return
    points = protocol.points()
    keys_P = points.user_P.astype(np.int64) << 32 | points.place_P.astype(np.int64)
    keys_R = rows.user_R << 32 | np.maximum(rows.point_R, 0)
    place_R = np.minimum(np.searchsorted(keys_P, keys_R), len(keys_P) - 1)
    is_point_R = is_of_point_R & (keys_P[place_R] == keys_R)
    if unknown := int((is_of_point_R & ~is_point_R).sum()):
        same = "--write-points and --lists need the same --points and --split"
        _note(f"left out: {counted(unknown, 'row')} of points that are not evaluated; {same}")
    yield points, np.where(is_point_R, place_R, -1)


def _evaluated(protocol: Protocol, lists: Lists, ranked: Ranked) -> dict[str, Evaluation]:
    """Ranking -> its result."""
    data, evaluation, trained = protocol.data, protocol.evaluation, protocol.trained
    found = {"lists": lists_evaluated(lists, ranked, data.num_items, evaluation)}
    if trained is not None:
        targets = replace(ranked, history=trained.settings.encoder.history) if isinstance(ranked, Points) else None
        found[trained.settings.model] = Split(trained, data, protocol.split).evaluated(trained.gamma(None), targets)
    for name, positive_only in BASELINES.items():
        counts = data.item_counts(positive_only=positive_only)
        found[name] = evaluate(popularity_scores(counts, World()), ranked, data.num_items, evaluation, World())
    return found


def lists_evaluated(lists: Lists, ranked: Ranked, num_items: int, settings: EvaluationSettings) -> Evaluation:
    """A target that is not in the list has a rank behind the catalog and all cut-offs."""
    place_R = _places(lists.target_R)
    is_target_R = _holds_target(lists, ranked)
    ranks_U = np.full(len(ranked), max(num_items, *settings.cutoffs) + 1, dtype=np.int64)
    ranks_U[lists.target_R[is_target_R]] = place_R[is_target_R]
    measures = measures_of(settings.measures)
    metrics = summarize(ranks_U, ranked.target_is_positive.astype(bool), settings.cutoffs, measures)
    for k in settings.cutoffs:
        listed_N = np.zeros(num_items, dtype=bool)
        listed_N[lists.item_R[place_R <= k] - 1] = True
        metrics[f"coverage_at_{k}"] = coverage(listed_N)
    return Evaluation(metrics, ranks_U)


def _holds_target(lists: Lists, ranked: Ranked) -> np.ndarray:
    return lists.item_R == ranked.target_item[lists.target_R]


def _places(target_R: np.ndarray) -> np.ndarray:
    """The place of each row in its list, from 1."""
    _, firsts, counts = np.unique(target_R, return_index=True, return_counts=True)
    return np.arange(len(target_R)) - np.repeat(firsts, counts) + 1


def _table(found: dict[str, Evaluation], ranked: Ranked) -> str:
    """Metrics, and the 95 % intervals of lists minus each other ranking."""
    head = ["", *map(metric_title, SHOWN), *(f"lists minus it, {metric_title(name)}" for name in COMPARED)]
    rows = []
    for name, of in found.items():
        cells = [score(of.metrics.get(metric)) for metric in SHOWN]
        intervals = _intervals(found["lists"], of, ranked) if name != "lists" else {}
        empty = "" if name == "lists" else "-"
        cells += [interval.text if (interval := intervals.get(metric)) else empty for metric in COMPARED]
        rows.append([name, *cells])
    return text_table(head, rows, other_width=9)


def _intervals(lists: Evaluation, other: Evaluation, ranked: Ranked) -> dict[str, Interval]:
    pair = (lists.target_rank[None], other.target_rank[None])
    is_positive_U = ranked.target_is_positive.astype(bool)
    if isinstance(ranked, Points):
        return paired_point_intervals(COMPARED, *pair, is_positive_U, ranked.user_P)
    return paired_intervals(COMPARED, *pair, is_positive_U)


def _notes(lists: Lists, ranked: Ranked, protocol: Protocol) -> list[str]:
    """What was left out, and lists that are too short."""
    what = f"{protocol.split} {'points' if isinstance(ranked, Points) else 'users'}"
    notes = [f"left out: {counted(count, 'row')} of {reason}" for reason, count in lists.left_out.items() if count]
    lengths_U = np.bincount(lists.target_R, minlength=len(ranked))
    longest = max(protocol.evaluation.cutoffs)
    if without := int((lengths_U == 0).sum()):
        notes.append(f"{without:,} of {len(ranked):,} {what} have no list; their targets count as not found")
    short = int(((lengths_U > 0) & (lengths_U < longest)).sum())
    if short:
        have = "list has" if short == 1 else "lists have"
        notes.append(f"{short:,} {have} fewer than {longest} items; beyond the end, targets count as not found")
    if lists.num_equal:
        have = "row has" if lists.num_equal == 1 else "rows have"
        notes.append(f"{lists.num_equal:,} {have} the rank of another item of the list; these are ordered by item id")
    if seen := lists.num_seen_targets:
        are = "target is an item" if seen == 1 else "targets are items"
        notes.append(f"{seen:,} {are} that the user has seen before; lists without seen items cannot hold them")
    if not _holds_target(lists, ranked).any():
        notes.append(
            "WARNING: no list holds its target. Lists must be made from the history before the target "
            "(--write-points writes it); pnfrec recommend makes lists from whole histories, which hold it already"
        )
    return notes


def _note(text: str) -> None:
    if text:
        print(text, file=sys.stderr)
