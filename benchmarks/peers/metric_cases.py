"""Random lists with ties, missing users, short lists and repeated items: this library's metrics beside RePlay's.

A list has ranks, which may be equal. RePlay takes scores; a rank's score is its negative. The definitions differ in two
points, so that RePlay gets lists as this library reads them: among equal ranks the smaller item first, and each item at
its first place only. `raw_difference` tells what RePlay says of the lists with repeated items.

U users of a case, R rows of its lists.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import ROOT, Environment
from pnfrec_dist.config.settings import EvaluationSettings
from pnfrec_dist.data.prepared import HoldoutData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.inference.list_evaluation import lists_evaluated
from pnfrec_dist.inference.other_lists import ListRows, lists_of

CUTOFFS = (1, 3, 10)
NAMES = {"hr": "HitRate", "ndcg": "NDCG", "mrr": "MRR"}


@dataclass(frozen=True)
class Case:
    """Lists of some users, and each user's target."""

    num_items: int
    user_R: np.ndarray
    item_R: np.ndarray
    rank_R: np.ndarray
    target_U: np.ndarray
    is_positive_U: np.ndarray


def random_case(rng: np.random.Generator) -> Case:
    users, items = int(rng.integers(1, 13)), int(rng.integers(12, 41))
    lengths_U = rng.integers(0, 16, users)  # 0: the user is missing
    user_R = np.repeat(np.arange(users), lengths_U)
    return Case(
        items,
        user_R,
        rng.integers(1, items + 1, len(user_R)),
        rng.integers(1, 13, len(user_R)),
        rng.integers(1, items + 1, users),
        rng.random(users) < 0.6,
    )


def own_metrics(case: Case) -> dict[str, float]:
    users = len(case.target_U)
    empty = Ragged(np.zeros(users + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))
    ranked = HoldoutData(empty, empty, case.target_U, case.is_positive_U, empty)
    rows = ListRows(case.user_R, case.item_R, case.rank_R, np.full(len(case.user_R), -1), {})
    settings = EvaluationSettings(cutoffs=CUTOFFS, measures=tuple(NAMES))
    return lists_evaluated(lists_of(rows, case.user_R, ranked), ranked, case.num_items, settings).metrics


def replay_cases(case: Case, *, repeats: bool) -> list[dict[str, Any]]:
    """What RePlay evaluates: users with a liked target, users with a disliked one, and the coverage of all lists."""
    lists: dict[str, list[tuple[int, float]]] = {}
    for row in np.lexsort((case.item_R, case.rank_R, case.user_R)):
        of_user = lists.setdefault(str(case.user_R[row]), [])
        item = int(case.item_R[row])
        if repeats or all(item != other for other, _ in of_user):
            of_user.append((item, -float(case.rank_R[row])))
    common = {"cutoffs": list(CUTOFFS), "catalog": list(range(1, case.num_items + 1)), "lists": lists}
    users = range(len(case.target_U))
    return [
        common | {"targets": {str(u): int(case.target_U[u]) for u in users if case.is_positive_U[u] == liked}}
        for liked in (True, False)
    ]


def differences(environment: Environment, work: Path, count: int) -> dict[str, dict[str, float]]:
    """Metric -> largest absolute difference over the cases: of lists as this library reads them ("difference"), and of
    lists with repeated items ("raw_difference")."""
    cases = [random_case(np.random.default_rng(seed)) for seed in range(count)]
    own = [own_metrics(case) for case in cases]
    found: dict[str, dict[str, float]] = {}
    for kind, repeats in (("difference", False), ("raw_difference", True)):
        asked = [part for case in cases for part in replay_cases(case, repeats=repeats)]
        theirs = replay_metrics(environment, work, asked)
        for number, of_own in enumerate(own):
            for name, value in renamed(*theirs[2 * number : 2 * number + 2]).items():
                measure = name.partition("_")[0]
                worst = found.setdefault(measure, {}).get(kind, 0.0)
                found[measure][kind] = max(worst, abs(value - of_own[name]))
    return found


def renamed(positive: dict[str, float], negative: dict[str, float]) -> dict[str, float]:
    """RePlay's metrics under this library's names."""
    found = {
        f"{own}_{group}_at_{k}": of[f"{name}@{k}"]
        for own, name in NAMES.items()
        for group, of in (("p", positive), ("n", negative))
        for k in CUTOFFS
        if f"{name}@{k}" in of
    }
    return found | {f"coverage_at_{k}": positive[f"Coverage@{k}"] for k in CUTOFFS if f"Coverage@{k}" in positive}


def replay_metrics(environment: Environment, work: Path, cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    asked, answered = work / "cases.json", work / "metrics.json"
    asked.write_text(json.dumps(cases), encoding="utf-8")
    line = [environment.python, "-m", "benchmarks.peers.replay_metrics", asked.absolute(), answered.absolute()]
    subprocess.run(line, check=True, cwd=ROOT)
    return json.loads(answered.read_text(encoding="utf-8"))
