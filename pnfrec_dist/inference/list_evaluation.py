"""Evaluates lists of another system on the test users, beside a model and the popularity rankings.

R rows of the lists, U test users.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pnfrec_dist.config.inference_settings import EvaluateSettings
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.prepared import HoldoutData, PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.baselines import BASELINES, popularity_scores
from pnfrec_dist.evaluation.bootstrap import paired_intervals
from pnfrec_dist.evaluation.holdout import Evaluation, evaluate
from pnfrec_dist.evaluation.metrics import (
    HEADLINE_METRICS,
    SELECTION_METRIC,
    coverage,
    measures_of,
    metric_title,
    summarize,
)
from pnfrec_dist.files.atomic import write_json, writing
from pnfrec_dist.files.locations import Location, reading
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.files.text import score
from pnfrec_dist.inference.gamma_search import Split
from pnfrec_dist.inference.trained_model import open_trained

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
COLUMNS = ("user_id", "rank", "raw_item_id")


@dataclass(frozen=True)
class _Lists:
    """Rows that name a test user and an item of the catalog, in the order of users and ranks."""

    user_R: np.ndarray
    """row of the test users"""
    item_R: np.ndarray
    left_out: dict[str, int]
    """reason -> rows that are not here"""


def run(settings: EvaluateSettings) -> int:
    """Prints the table. Raises InputError for files that cannot be read and for a model of other data."""
    trained = open_trained(settings.run, settings.data_dir) if settings.run else None
    dataset = settings.dataset or (trained.settings.dataset if trained is not None else "")
    if not dataset:
        raise InputError("--lists needs --dataset, the prepared data set whose test users the lists are for, or --run")
    data = open_prepared(Location(settings.data_dir) / dataset).require_whole("test")
    if trained is not None and trained.data_digest != data.manifest.digest:
        raise InputError(f"{settings.run} was trained on another state of the data than {data.directory}")
    evaluation = trained.settings.evaluation if trained is not None else EvaluationSettings()
    users = data.holdout("test")
    lists = _read(Path(settings.lists), data, users)
    found = {"lists": _evaluated(lists, users, data.num_items, evaluation)}
    if trained is not None:
        found[trained.settings.model] = Split(trained, data, "test").evaluated(trained.gamma(None))
    for name, positive_only in BASELINES.items():
        counts = data.item_counts(positive_only=positive_only)
        found[name] = evaluate(popularity_scores(counts, World()), users, data.num_items, evaluation, World())
    print(_table(found, users.target_is_positive.astype(bool)), end="\n\n")
    for text in _notes(lists, users, evaluation):
        print(text, file=sys.stderr)
    if settings.out:
        with writing(f"--out {settings.out}", "name another file"):
            write_json(Path(settings.out), {name: of.metrics for name, of in found.items()}, indent=1)
    return 0


def _read(path: Path, data: PreparedData, users: HoldoutData) -> _Lists:
    """Raises InputError for files without the columns, and if no row names a test user and an item of the catalog."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"--lists {path} holds no *.parquet file; name a file, or a directory of such files")
    with reading(Location(path), "name a Parquet file of lists"):
        schema = pq.read_schema(files[0])
        missing = [name for name in COLUMNS if name not in schema.names]
        if missing:
            raise InputError(f"{files[0]} has no column {missing[0]!r}; lists need {', '.join(COLUMNS)}")
        tables = [pq.read_table(file, columns=list(COLUMNS)) for file in files]
        table = pa.concat_tables(tables, promote_options="permissive")
    kind = table["rank"].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"the column 'rank' of {files[0]} is {kind}; it must be a number, 1 for the first item")
    user_ids, raw_ids = data.user_ids("test"), data.raw_item_ids()
    user = pc.index_in(_texts(table["user_id"]), user_ids).to_numpy(zero_copy_only=False)
    item = pc.index_in(_texts(table["raw_item_id"]), raw_ids).to_numpy(zero_copy_only=False)
    rank = table["rank"].to_numpy()
    is_user, is_item = ~np.isnan(user.astype(float)), ~np.isnan(item.astype(float))
    if not (is_user & is_item).any():
        example = f"{table['user_id'][0]} and {table['raw_item_id'][0]}" if len(table) else "no row at all"
        raise InputError(
            f"no row of {path} names a test user and an item of {data.directory}; the first has {example}, "
            f"the data set has users such as {user_ids[0]} and items such as {raw_ids[0]}"
        )
    kept = is_user & is_item
    user_R, item_R, rank_R = user[kept].astype(np.int64), item[kept].astype(np.int64) + 1, rank[kept]
    order = np.lexsort((item_R, rank_R, user_R))
    user_R, item_R = user_R[order], item_R[order]
    keys_R = user_R << 32 | item_R
    seen_user, seen_item = users.seen.pairs(np.arange(len(users)))
    target_keys = np.arange(len(users)) << 32 | users.target_item.astype(np.int64)
    is_seen_R = np.isin(keys_R, np.setdiff1d(seen_user << 32 | seen_item.astype(np.int64), target_keys))
    is_first_R = np.zeros(len(keys_R), dtype=bool)
    is_first_R[np.unique(keys_R, return_index=True)[1]] = True
    left_out = {
        "users who are no test users": int((~is_user).sum()),
        "items that are not in the catalog": int((is_user & ~is_item).sum()),
        "items that the user has already seen": int(is_seen_R.sum()),
        "items that stand twice in a list": int((~is_first_R & ~is_seen_R).sum()),
    }
    taken = is_first_R & ~is_seen_R
    return _Lists(user_R[taken], item_R[taken], left_out)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Ids as text."""
    return pc.cast(column, pa.string()).combine_chunks()


def _evaluated(lists: _Lists, users: HoldoutData, num_items: int, settings: EvaluationSettings) -> Evaluation:
    """A target that is not in the list has a rank behind the catalog and all cut-offs."""
    place_R = _places(lists.user_R)
    is_target_R = lists.item_R == users.target_item[lists.user_R]
    ranks_U = np.full(len(users), max(num_items, *settings.cutoffs) + 1, dtype=np.int64)
    ranks_U[lists.user_R[is_target_R]] = place_R[is_target_R]
    measures = measures_of(settings.measures)
    metrics = summarize(ranks_U, users.target_is_positive.astype(bool), settings.cutoffs, measures)
    for k in settings.cutoffs:
        listed_N = np.zeros(num_items, dtype=bool)
        listed_N[lists.item_R[place_R <= k] - 1] = True
        metrics[f"coverage_at_{k}"] = coverage(listed_N)
    return Evaluation(metrics, ranks_U)


def _places(user_R: np.ndarray) -> np.ndarray:
    """The place of each row in its user's list, from 1."""
    _, firsts, counts = np.unique(user_R, return_index=True, return_counts=True)
    return np.arange(len(user_R)) - np.repeat(firsts, counts) + 1


def _table(found: dict[str, Evaluation], is_positive_U: np.ndarray) -> str:
    """Headline metrics, and the 95 % interval of lists minus each other ranking in the first of them."""
    head = ["", *map(metric_title, HEADLINE_METRICS), f"lists minus it, {metric_title(SELECTION_METRIC)}"]
    rows = []
    for name, of in found.items():
        cells = [score(of.metrics.get(metric)) for metric in HEADLINE_METRICS]
        pair = (found["lists"].target_rank[None], of.target_rank[None])
        interval = paired_intervals([SELECTION_METRIC], *pair, is_positive_U).get(SELECTION_METRIC)
        rows.append([name, *cells, "" if name == "lists" else interval.text if interval else "-"])
    return text_table(head, rows, other_width=9)


def _notes(lists: _Lists, users: HoldoutData, settings: EvaluationSettings) -> list[str]:
    """What was left out, and lists that are too short."""
    notes = [f"left out: {count:,} rows of {reason}" for reason, count in lists.left_out.items() if count]
    lengths_U = np.bincount(lists.user_R, minlength=len(users))
    longest = max(settings.cutoffs)
    if without := int((lengths_U == 0).sum()):
        notes.append(f"{without:,} of {len(users):,} test users have no list; their targets count as not found")
    short = int(((lengths_U > 0) & (lengths_U < longest)).sum())
    if short:
        notes.append(f"{short:,} lists have fewer than {longest} items; beyond their end, targets count as not found")
    if not np.any(lists.item_R == users.target_item[lists.user_R]):
        notes.append(
            "WARNING: no list holds its user's target. Lists must be made from the histories in test/, which end "
            "before it; pnfrec recommend makes lists from whole histories, which hold it already"
        )
    return notes
