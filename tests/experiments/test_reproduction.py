"""The plan, resumed trainings, and the report of trainings by the real loop, without Ray."""

import csv
import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments import plots
from pnfrec_dist.experiments.comparison import Comparison, Recorded, curve_points
from pnfrec_dist.experiments.missing_trainings import recorded, still_missing
from pnfrec_dist.experiments.paper_figures import published_figures
from pnfrec_dist.experiments.report import About, write_report
from pnfrec_dist.experiments.reproduction import planned_states
from pnfrec_dist.experiments.reproduction_options import Options
from pnfrec_dist.experiments.reproduction_plan import Training, planned
from pnfrec_dist.training.events import Event
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.result import DIRECTORY, RESULT, read_result, read_test_users
from pnfrec_dist.training.run_directory import choose_run, finished_run

FLAGS = ("--epochs", "2", "--encoder.hidden-size", "8", "--encoder.max-length", "5", "--train.batch-size", "8")
MODELS = ("pnfrec", "sasrec_p", "sasrec_c")
PUBLISHED = "pnfrec: [0.2, 0.1, 0.05, -0.02]\nsasrec_p: [0.1, 0.1, 0.1, 0.1]\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    directory = tmp_path_factory.mktemp("reproduction")
    prepared_writer(directory / "data" / "prepared" / "tiny")
    (directory / "conf" / "published").mkdir(parents=True)
    (directory / "conf" / "published" / "tiny.yaml").write_text(PUBLISHED)
    return directory


@pytest.fixture(autouse=True)
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def plan(workspace: Path, seeds: int = 2) -> list[Training]:
    curves = {"alpha": (0.0, 0.45), "beta": (0.25,)}
    directory = workspace / "runs"
    return planned(Options("tiny", MODELS, tuple(range(1, seeds + 1)), curves, directory, False, None, FLAGS))


def data(workspace: Path) -> PreparedData:
    return open_prepared(workspace / "data" / "prepared" / "tiny")


def train(training: Training, prepared: PreparedData) -> None:
    """Trains as the command does, but without Ray and MLflow."""
    run = choose_run(training.settings, prepared.manifest.digest)
    run.write()
    events: list[Event] = []
    TrainLoop(training.settings, prepared, run.directory, World(), Hooks(events.append, lambda: False)).run()
    run.ended = "finished"
    run.write()


@pytest.fixture(scope="module")
def found(workspace: Path) -> list[Recorded]:
    """All trainings of the plan. Those without a result are trained, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        prepared = data(workspace)
        for training in plan(workspace):
            if recorded(training, prepared.manifest.digest) is None:
                train(training, prepared)
        return [r for t in plan(workspace) if (r := recorded(t, prepared.manifest.digest)) is not None]


def test_the_table_is_planned_seed_by_seed_and_then_the_curves(workspace: Path) -> None:
    names = [training.name for training in plan(workspace)]
    models = [training.settings.model for training in plan(workspace)]
    assert models == [*MODELS, *MODELS, *["pnfrec_pn"] * 4, *["pnfrec"] * 2]
    assert all(name.startswith(f"{model} tiny epochs=") for name, model in zip(names, models, strict=True)), names
    assert all(re.search("alpha=(0|0.45) .*seed [12]$", name) for name in names[6:10])
    assert all(re.search("beta=0.25 .*seed [12]$", name) for name in names[10:])
    settings = plan(workspace)[8].settings
    assert (settings.model, settings.loss.alpha, settings.loss.beta, settings.seed) == ("pnfrec_pn", 0.0, 0.0, 2)
    assert settings.epochs == 2 and settings.encoder.hidden_size == 8


def test_what_is_missing_is_counted_once(workspace: Path) -> None:
    assert len(still_missing(plan(workspace, seeds=3), "another")) == 12
    assert [t.name for t in still_missing(plan(workspace, seeds=1), "another")][3:] == [
        "pnfrec_pn tiny epochs=2 d=8 l=5 alpha=0.45 batch=8 seed 1"
    ]


def test_a_dry_run_shows_what_is_to_be_trained(workspace: Path, found: list[Recorded]) -> None:
    trainings, digest = plan(workspace, seeds=3), data(workspace).manifest.digest
    lines = dict(re.split(r" {2,}", line) for line in planned_states(trainings, digest).splitlines())
    assert lines.pop("training") == "state"
    assert list(lines) == [training.name for training in trainings]
    assert {lines[training.name] for training in trainings if training.settings.seed < 3} == {"has a result"}
    new = {(t.settings.model, t.weight and t.value): t.name for t in trainings if t.settings.seed == 3}
    assert lines[new["pnfrec", ""]] == lines[new["pnfrec_pn", 0.45]] == "to be trained"
    assert lines[new["pnfrec_pn", 0.0]] == f"equals {new['sasrec_p', '']}"


def test_equal_trainings_are_run_once(workspace: Path, found: list[Recorded]) -> None:
    """pnfrec_pn with alpha 0 equals sasrec_p, and pnfrec with beta 0.25 equals pnfrec: 12 planned, 8 trained."""
    assert len(found) == 12
    assert len(list((workspace / "runs").glob("*/run.json"))) == 8
    keys = {run.key for run in found}
    assert len(keys) == 8
    assert {r.key for r in found if r.weight == "alpha" and r.value == 0} == {
        r.key for r in found if r.model == "sasrec_p"
    }


def test_other_settings_other_data_and_unfinished_runs_are_no_result(workspace: Path, found: list[Recorded]) -> None:
    training, digest = plan(workspace)[0], data(workspace).manifest.digest
    assert recorded(training, digest) is not None
    assert recorded(training, "another") is None
    longer = dataclasses.replace(training, settings=dataclasses.replace(training.settings, epochs=3))
    assert recorded(longer, digest) is None
    run = finished_run(training.settings, digest)
    assert run is not None
    run.ended = ""
    run.write()
    assert recorded(training, digest) is None
    run.ended = "finished"
    run.write()
    result = run.directory / DIRECTORY / RESULT
    content = result.read_text()
    result.write_text(content[:-20])
    with pytest.raises(InputError, match=r"result\.json cannot be read"):
        recorded(training, digest)
    result.write_text(content)
    assert recorded(training, digest) is not None


def test_a_result_is_what_was_measured(workspace: Path, found: list[Recorded]) -> None:
    """Metrics equal those computed from the stored target ranks."""
    for run in found:
        users, result = run.users, run.result
        liked = users.target_rank["model"][users.target_is_positive]
        assert result.test["hr_p_at_5"] == pytest.approx(sum(rank <= 5 for rank in liked) / len(liked))
        for floor, metrics in result.floors.items():
            liked = users.target_rank[floor][users.target_is_positive]
            assert metrics["hr_p_at_10"] == pytest.approx(sum(rank <= 10 for rank in liked) / len(liked))
        scores = [epoch.metrics["val/ndcg_p_at_10"] for epoch in result.epochs]
        assert len(scores) == 2 and result.best_epoch == scores.index(max(scores)) + 1
    run = finished_run(plan(workspace)[0].settings, data(workspace).manifest.digest)
    assert run is not None
    result = read_result(run.directory)
    assert result is not None and (run.directory / result.checkpoint / "COMMITTED").is_file()
    assert read_test_users(run.directory).target_rank.keys() == {"model", "popularity", "popularity_positive"}


def report(workspace: Path, found: list[Recorded], directory: Path, planned: int = 12) -> str:
    table = {model: [r for r in found if r.model == model and not r.weight] for model in MODELS}
    curves = {weight: [r for r in found if r.weight == weight] for weight in ("alpha", "beta")}
    comparison = Comparison({model: runs for model, runs in table.items() if runs}, published_figures("tiny"))
    manifest = data(workspace).manifest
    about = About(
        "tiny: a test", "the command" + " --flag value" * 20, manifest, "the code", planned, len(found), ["a: failed"]
    )
    page = write_report(directory, about, comparison, {weight: runs for weight, runs in curves.items() if runs})
    html = page.read_text()
    lines = (directory / "report.md").read_text().splitlines()
    assert all(len(line) <= 100 for line in lines if not line.startswith("|")), "prose and commands are wrapped"
    assert html.count("data:image/png;base64") == len(re.findall(r"<img", html)) >= 2 and "<script" not in html
    return (directory / "report.md").read_text()


def alone(run: Recorded, measure: str, further: Sequence[str] = ()) -> Recorded:
    """The run as a training with one measure, and with further terms of the loss, would have recorded it."""

    def kept(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if name.startswith((measure, "coverage"))}

    settings = run.result.settings | {
        "evaluation": run.result.settings["evaluation"] | {"measures": [measure]},
        "loss": run.result.settings["loss"] | {"terms": list(further)},
    }
    floors = {floor: kept(metrics) for floor, metrics in run.result.floors.items()}
    result = dataclasses.replace(run.result, settings=settings, test=kept(run.result.test), floors=floors)
    return dataclasses.replace(run, result=result)


def test_a_measure_that_was_not_computed_is_missing_in_the_report(
    workspace: Path, found: list[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[list[str]] = []
    drawn = plots.comparison_bars
    monkeypatch.setattr(
        plots, "comparison_bars", lambda models, metrics: (bars.extend(map(list, metrics)), drawn(models, metrics))[1]
    )
    text = report(workspace, [alone(run, "ndcg") for run in found], tmp_path)
    table, against = text.split("## Table 2")[1], text.split("## Difference from")[1]
    for part, model in ((table, "sasrec_p"), (against, "pnfrec")):
        (line,) = [row for row in part.splitlines() if row.startswith(f"| `{model}`")][:1]
        hr_p, ndcg_p, hr_delta, ndcg_delta = line.split("|")[3:7]
        assert hr_p.strip() == hr_delta.strip() == "-" and "." in ndcg_p and "." in ndcg_delta
    assert bars == [["ndcg_p_at_10", "ndcg_n_at_10", "ndcg_delta_at_10"]]


def test_an_own_term_has_its_title_in_the_report(
    workspace: Path, found: list[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "terms_of_mine.py").write_text(
        "from pnfrec_dist.losses.terms import CrossEntropyTerm\n"
        "class Mine(CrossEntropyTerm):\n"
        "    def name(self, encoder): return 'mine'\n"
        "    def title(self, encoder): return 'a title of mine'\n"
        "MINE = Mine('main')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    runs = [alone(run, "ndcg", ["terms_of_mine:MINE=0.1"]) for run in found if not run.weight]
    for run in runs:
        for epoch in run.result.epochs:
            epoch.metrics["train/mine"] = 1.0
    titles: list[str] = []
    save = plots.save_png
    monkeypatch.setattr(
        plots,
        "save_png",
        lambda figure, path: (titles.extend(axes.get_title(loc="left") for axes in figure.axes), save(figure, path)),
    )
    report(workspace, runs, tmp_path / "report")
    assert {"CE over likes", "a title of mine"} <= set(titles) and "mine" not in titles


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def four(value: float) -> str:
    return f"{value:.4f}".replace("0.", ".")


def test_weights_that_validation_chose_are_told(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    """One value for each seed; models whose weights are fixed have none."""

    def chosen(run: Recorded) -> Recorded:
        weights = {"likes_share": 0.2 * run.seed, "gamma": 0.0} if run.model == "pnfrec" else {}
        return dataclasses.replace(run, result=dataclasses.replace(run.result, weights=weights))

    lines = (
        report(workspace, [chosen(run) for run in found], tmp_path)
        .split("## Training")[1]
        .partition("\n## ")[0]
        .splitlines()
    )
    rows = {
        line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[-3:-1]]
        for line in lines
        if "|" in line
    }
    assert rows["model"] == ["gamma, chosen", "likes_share, chosen"]
    assert rows["pnfrec"] == ["0 0", "0.2 0.4"] and rows["sasrec_p"] == ["", ""]


def test_the_report_says_what_the_runs_measured(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    text = report(workspace, found, tmp_path)
    for model in MODELS:
        values = [r.result.test["ndcg_p_at_10"] for r in found if r.model == model and not r.weight]
        assert len(values) == 2
        mean, sd = statistics.mean(values), statistics.stdev(values)
        (line,) = [row for row in text.split("## Table 2")[1].splitlines() if row.startswith(f"| `{model}`")][:1]
        assert f"{four(mean)} ± {four(sd)}" in line
        if model == "pnfrec":
            assert f"{four(mean)} ± {four(sd)} (.1000, {'+' if mean >= 0.1 else ''}{four(mean - 0.1)})" in line
    last, points = text.split("## At other k")[1].split("On many points:")
    for part, start in ((last, ""), (points, "points_")):
        (line,) = [row for row in part.splitlines() if row.startswith("| `pnfrec` | 5 |")]
        values = [r.result.test[f"{start}ndcg_n_at_5"] for r in found if r.model == "pnfrec" and not r.weight]
        assert line.split("|")[7].strip().startswith(four(statistics.mean(values)))
    assert "| `popularity_positive` |" in text and "a: failed" in text and "the command" in text
    assert "planned trainings" not in text, "all have a result"
    written = rows_of(tmp_path / "tables" / "runs.csv")
    assert [(row["model"], row["seed"]) for row in written] == [(m, s) for m in MODELS for s in ("1", "2")]
    assert float(written[0]["hr_n_at_20"]) == found[0].result.test["hr_n_at_20"]
    curves = rows_of(tmp_path / "tables" / "learning_curves.csv")
    assert len(curves) == 3 * 2 * 2 and curves[0]["train/ce_positive"] and not curves[0]["train/ce_all"]
    compared = {(row["model"], row["metric"]): row for row in rows_of(tmp_path / "tables" / "comparison.csv")}
    row = compared["pnfrec", "ndcg_delta_at_10"]
    assert float(row["low"]) <= float(row["minus_sasrec_p"]) <= float(row["high"]) and row["published"] == "-0.02"
    means = {m: float(compared[m, "ndcg_delta_at_10"]["mean"]) for m in MODELS}
    assert float(row["minus_sasrec_p"]) == pytest.approx(means["pnfrec"] - means["sasrec_p"])


def test_seeds_that_not_all_have_are_counted(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    """alpha 0 has both seeds, alpha 0.45 has one; sasrec_c and sasrec_p have no seed in common."""
    left_out = [("sasrec_p", 2, ""), ("sasrec_c", 1, ""), ("pnfrec_pn", 2, "alpha")]
    some = [r for r in found if (r.model, r.seed, r.weight) not in left_out or (r.weight and r.value == 0)]
    text = report(workspace, some, tmp_path)
    assert "3 models with 1 to 2 seeds" in text
    assert "`pnfrec_pn` with 1 to 2 seeds for each value" in text and "is 0 (among those with 2 seeds)" in text
    table, against = text.split("## Table 2")[1], text.split("## Difference from")[1]
    assert "| `pnfrec` | 2 |" in table and "| `sasrec_p` | 1 |" in table and "| `popularity` |  |" in table
    assert "| `pnfrec` | 1 | " in against and "| `sasrec_c` | 0 | - | - | - | - |" in against
    rows = rows_of(tmp_path / "tables" / "alpha.csv")
    assert {(row["alpha"], row["seeds"]) for row in rows} == {("0.0", "2"), ("0.45", "1")}
    compared = rows_of(tmp_path / "tables" / "comparison.csv")
    assert {row["model"]: row["seeds"] for row in compared}["sasrec_p"] == "1"


def test_a_report_holds_nothing_of_an_earlier_one(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    report(workspace, found, tmp_path / "report")
    assert (tmp_path / "report/tables/alpha.csv").exists()
    report(workspace, [r for r in found if not r.weight], tmp_path / "report", planned=6)
    assert not (tmp_path / "report/tables/alpha.csv").exists()
    assert not (tmp_path / "report/figures/alpha.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_the_curve_is_that_of_the_points(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    text = report(workspace, found, tmp_path)
    points = curve_points(r for r in found if r.weight == "alpha")
    assert points.keys() == {0.0, 0.45}
    of_zero = [r.result.test["ndcg_p_at_10"] for r in found if r.model == "sasrec_p"]
    assert points[0.0]["ndcg_p_at_10"].mean == pytest.approx(statistics.mean(of_zero))
    assert f"| 0 | 2 | {four(statistics.mean(of_zero))} ± {four(statistics.stdev(of_zero))} |" in text
    assert {"alpha.png", "beta.png", "bars.png", "learning_curves.png"} == {
        p.name for p in (tmp_path / "figures").iterdir()
    }
    written = {(row["alpha"], row["metric"]): float(row["mean"]) for row in rows_of(tmp_path / "tables" / "alpha.csv")}
    assert written["0.0", "ndcg_p_at_10"] == pytest.approx(statistics.mean(of_zero))


def test_a_report_of_some_says_what_is_missing(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    """pnfrec has only seed 1, sasrec_p has both. One seed has no SD, and the two are compared on seed 1."""
    some = [r for r in found if not r.weight and (r.model, r.seed) != ("pnfrec", 2) and r.model != "sasrec_c"]
    text = report(workspace, some, tmp_path, planned=6)
    assert "**3 of the 6 planned trainings have a result. The others are missing in this report.**" in text
    (line,) = [row for row in text.split("## Table 2")[1].splitlines() if row.startswith("| `pnfrec`")][:1]
    assert "±" not in line
    compared = {(row["model"], row["metric"]): row for row in rows_of(tmp_path / "tables" / "comparison.csv")}
    ours, theirs = (next(r for r in some if r.model == m and r.seed == 1) for m in ("pnfrec", "sasrec_p"))
    expected = ours.result.test["hr_p_at_10"] - theirs.result.test["hr_p_at_10"]
    assert float(compared["pnfrec", "hr_p_at_10"]["minus_sasrec_p"]) == pytest.approx(expected)
    others = [r for r in found if r.model in ("pnfrec", "sasrec_c") and not r.weight]
    assert "`sasrec_p` is not among them" in report(workspace, others, tmp_path / "others", planned=len(others))


def test_a_report_of_curves_alone_has_no_table(workspace: Path, found: list[Recorded], tmp_path: Path) -> None:
    text = report(workspace, [r for r in found if r.weight], tmp_path)
    assert "## Over alpha" in text and "## Table 2" not in text and not (tmp_path / "figures" / "bars.png").exists()
