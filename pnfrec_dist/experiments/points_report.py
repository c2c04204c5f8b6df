"""The section of a report on many points: its metrics beside those of the last interactions, and what chance does."""

import numpy as np

from pnfrec_dist.evaluation.bootstrap import resample_count
from pnfrec_dist.evaluation.chance import chance_of_difference
from pnfrec_dist.evaluation.metrics import HEADLINE_CUTOFF, POINTS, SELECTION_METRIC, metric_title, ndcg
from pnfrec_dist.experiments.comparison import Comparison
from pnfrec_dist.experiments.table_cells import interval_text, spread_text
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.files.text import signed

SHOWN = tuple(f"ndcg_{group}_at_{HEADLINE_CUTOFF}" for group in ("p", "n", "delta"))


def points_parts(comparison: Comparison) -> list[str]:
    """Empty if the trainings have no points."""
    points = comparison.any_run().points
    if points is None:
        return []
    users, likes = len(np.unique(points.user)), int(points.target_is_positive.sum())
    text = (
        f"Up to {int(np.bincount(points.user).max())} interactions from T on of each test user. Each is predicted from "
        f"what came before its timestamp. These are {len(points.user):,} points of {users:,} users, {likes:,} of them "
        "likes. The metrics are means over points."
    )
    parts = ["## Many points", text, _values(comparison)]
    if comparison.reference in comparison.runs and len(comparison.runs) > 1:
        likely = int(comparison.any_run().users.target_is_positive.sum())
        parts += [
            f"### Difference from `{comparison.reference}`, on both",
            "95 % intervals of a paired bootstrap over the test users, each with all its points. **Bold**: the interval"
            " does not contain 0.",
            _differences(comparison),
            "### What chance does on the last interactions",
            "If two models are equally good, it is chance which of them is better for a user. So the difference in "
            f"{metric_title(SELECTION_METRIC)} of each user with a liked target was given a random sign, "
            f"{resample_count(likely):,} times. The last column has the share of draws whose mean is at least as large "
            "as the difference on the last interactions.",
            _chances(comparison),
        ]
    return parts


def _values(comparison: Comparison) -> str:
    rows = [
        [
            f"`{model}`",
            str(len(comparison.runs[model])) if model in comparison.runs else "",
            *(spread_text(metrics.get(f"{start}{name}")) for start in ("", POINTS) for name in SHOWN),
        ]
        for model, metrics in comparison.spreads().items()
    ]
    titles = [f"{metric_title(name)}, {kind}" for kind in ("last", "points") for name in SHOWN]
    return markdown_table(["model", "seeds", *titles], rows)


def _differences(comparison: Comparison) -> str:
    names = [f"{start}{name}" for name in SHOWN for start in ("", POINTS)]
    found = comparison.intervals(names)
    rows = [[f"`{model}`", *(interval_text(of_model.get(name)) for name in names)] for model, of_model in found.items()]
    titles = [f"{metric_title(name)}, {kind}" for name in SHOWN for kind in ("last", "points")]
    return markdown_table(["model", *titles], rows)


def _chances(comparison: Comparison) -> str:
    rows, on_points = [], f"{POINTS}{SELECTION_METRIC}"
    for model, found in comparison.intervals([SELECTION_METRIC, on_points]).items():
        if model in comparison.runs and found.keys() == {SELECTION_METRIC, on_points}:
            own_SU, other_SU, is_liked_U = comparison.users_of_shared_seeds(model)
            values_U = (ndcg(own_SU, HEADLINE_CUTOFF).mean(0) - ndcg(other_SU, HEADLINE_CUTOFF).mean(0))[is_liked_U]
            share = chance_of_difference(values_U)
            differences = [signed(found[name].difference) for name in (SELECTION_METRIC, on_points)]
            rows.append([f"`{model}`", *differences, "< 1%" if share < 0.005 else f"{share:.0%}"])
    return markdown_table(["model", "difference, last", "difference, points", "by chance as large"], rows)
