"""The section on many points: its figures beside those computed from the target ranks."""

import dataclasses

import numpy as np
import pytest

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.evaluation.metrics import measures_of, of_points, summarize
from pnfrec_dist.experiments.comparison import Comparison, Recorded
from pnfrec_dist.experiments.points_report import points_parts
from pnfrec_dist.training.result import Result, TestPoints, TestUsers

USERS, EACH = 80, 6
IS_LIKED_U = np.arange(USERS) % 3 != 0
USER_P = np.repeat(np.arange(USERS), EACH)
IS_LIKED_P = np.random.default_rng(0).random(len(USER_P)) < 0.6


def recorded(model: str, seed: int, most: int, *, with_points: bool = True) -> Recorded:
    """A training whose target ranks are 1 to `most`."""
    rng = np.random.default_rng([seed, most])
    ranks_U, ranks_P = (
        {name: rng.integers(1, most + 1, size) for name in ("model", "popularity")} for size in (USERS, len(USER_P))
    )

    def metrics(name: str) -> dict[str, float]:
        last = summarize(ranks_U[name], IS_LIKED_U, (10,), measures_of())
        many = of_points(summarize(ranks_P[name], IS_LIKED_P, (10,), measures_of()))
        return last | (many if with_points else {})

    floors = {"popularity": metrics("popularity")}
    result = Result(to_mapping(Settings(model=model)), "digest", 100, 1, [], 1, "checkpoint", metrics("model"), floors)
    points = TestPoints(USER_P, IS_LIKED_P, ranks_P) if with_points else None
    return Recorded(model, seed, result, TestUsers(IS_LIKED_U, ranks_U), points, f"{model}-{seed}", has_model=False)


def comparison(**options: bool) -> Comparison:
    """pnfrec is better than sasrec_p, sasrec is as good."""
    most = {"sasrec_p": 60, "pnfrec": 15, "sasrec": 60}
    return Comparison({model: [recorded(model, seed, most[model], **options) for seed in (1, 2)] for model in most})


def four(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".")


def test_figures_are_those_of_the_ranks() -> None:
    found = comparison()
    text = "\n".join(points_parts(found))
    assert f"{len(USER_P)} points of {USERS} users, {IS_LIKED_P.sum()} of them likes" in text
    values, differences, chances = (text.split(head)[1] for head in ("## Many points", "### Difference", "### What"))
    for model, runs in found.runs.items():
        (line,) = [row for row in values.splitlines() if row.startswith(f"| `{model}`")][:1]
        mean = np.mean([run.result.test["points_ndcg_p_at_10"] for run in runs])
        assert line.split("|")[6].strip().startswith(four(float(mean)))
    (better,) = [row for row in differences.splitlines() if row.startswith("| `pnfrec`")][:1]
    (equal,) = [row for row in differences.splitlines() if row.startswith("| `sasrec`")][:1]
    assert better.split("|")[3].strip().startswith("**+") and not equal.split("|")[3].strip().startswith("**")
    shares = {row.split("|")[1].strip(" `"): row.split("|")[4].strip() for row in chances.splitlines()[-2:]}
    assert shares.keys() == {"pnfrec", "sasrec"}
    assert int(shares["pnfrec"].strip("< %")) < 5 < int(shares["sasrec"].strip("< %"))


def test_intervals_are_of_points_only_if_all_trainings_have_the_same() -> None:
    metrics = ["ndcg_p_at_10", "points_ndcg_p_at_10"]
    assert comparison().intervals(metrics)["pnfrec"].keys() == set(metrics)
    assert comparison().intervals(metrics)["popularity"].keys() == set(metrics)
    found = comparison()
    found.runs["pnfrec"][1] = recorded("pnfrec", 2, 15, with_points=False)
    assert found.intervals(metrics)["pnfrec"].keys() == {"ndcg_p_at_10"}
    assert found.intervals(metrics)["sasrec"].keys() == set(metrics)


@pytest.mark.parametrize("models", [["pnfrec"], ["sasrec_p"]])
def test_without_a_reference_there_is_a_table_alone(models: list[str]) -> None:
    runs = {model: found for model, found in comparison().runs.items() if model in models}
    text = "\n".join(points_parts(Comparison(runs)))
    assert "## Many points" in text and "### Difference" not in text


def test_without_points_there_is_no_section() -> None:
    assert points_parts(comparison(with_points=False)) == []


def test_another_model_can_be_the_reference() -> None:
    """The difference changes its sign."""

    def difference(reference: str, model: str) -> float:
        text = "\n".join(points_parts(dataclasses.replace(comparison(), reference=reference)))
        rows = text.split(f"### Difference from `{reference}`")[1].splitlines()
        (row,) = [row for row in rows if row.startswith(f"| `{model}`")][:1]
        return float(row.split("|")[3].strip(" *").partition(" ")[0])

    assert difference("sasrec_p", "pnfrec") == -difference("pnfrec", "sasrec_p") > 0
