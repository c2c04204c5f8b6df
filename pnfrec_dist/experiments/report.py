"""Writes report.md, report.html, figures (PNG) and tables (CSV) from recorded trainings."""

import base64
import datetime
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from pnfrec_dist.config.mappings import flatten
from pnfrec_dist.data.schema import Manifest, few_liked_targets
from pnfrec_dist.evaluation.bootstrap import resample_count, spread
from pnfrec_dist.evaluation.metrics import (
    HEADLINE_MEASURES,
    HEADLINE_METRICS,
    LOGGED_SELECTION,
    POINTS,
    SELECTION_METRIC,
    measures_of,
    metric_title,
)
from pnfrec_dist.experiments import plots
from pnfrec_dist.experiments.comparison import (
    Comparison,
    Recorded,
    curve_points,
    write_tables,
)
from pnfrec_dist.experiments.paper_figures import published_width
from pnfrec_dist.experiments.points_report import points_parts
from pnfrec_dist.experiments.table_cells import interval_text, spread_text
from pnfrec_dist.files.atomic import replaced_directory
from pnfrec_dist.files.html_pages import html_of_markdown, page
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.files.text import counted, duration, four, signed, span

REPORT, PAGE = "report.md", "report.html"
BARS = {name: (f"{name}_p_at_10", f"{name}_n_at_10", f"{name}_delta_at_10") for name in HEADLINE_MEASURES}
CURVE_METRICS = (SELECTION_METRIC, "ndcg_delta_at_10", LOGGED_SELECTION)
WIDTH = 100
SHOWN = ("epochs", "encoder", "loss", "contrastive", "optimizer", "train", "evaluation")
"""Sections of the settings that a report shows, plus "sampled" if items are sampled."""


@dataclass(frozen=True)
class About:
    """What a report says about itself."""

    title: str
    command: str
    manifest: Manifest
    code: str
    """commit and versions"""
    planned: int
    """number of planned trainings"""
    recorded: int
    """number of them with a result"""
    problems: Sequence[str] = ()
    """messages of trainings that failed"""
    has_other_models: bool = False
    """whether there are models that the paper does not have"""


def headline_markdown(comparison: Comparison) -> str:
    """Table 2: mean +- SD over seeds, the published figure, and the difference from it."""
    spreads, published = comparison.spreads(), comparison.published
    rows = []
    for model, metrics in spreads.items():
        cells = [str(len(comparison.runs[model])) if model in comparison.runs else ""]
        for metric in HEADLINE_METRICS:
            cell = spread_text(metrics.get(metric))
            if metric in published.get(model, {}) and metric in metrics:
                paper = published[model][metric]
                cell += f" ({four(paper)}, {signed(metrics[metric].mean - paper)})"
            cells.append(cell)
        rows.append([f"`{model}`", *cells])
    return markdown_table(["model", "seeds", *map(metric_title, HEADLINE_METRICS)], rows)


def missing_markdown(planned: int, recorded: int) -> str:
    """A sentence if some planned trainings have no result, else empty."""
    has = "has" if recorded == 1 else "have"
    text = f"**{recorded} of the {planned} planned trainings {has} a result. The others are missing in this report.**"
    return text if recorded < planned else ""


def write_report(directory: Path, about: About, comparison: Comparison, curves: dict[str, list[Recorded]]) -> Path:
    """Writes all files into `directory`, replacing its content, and returns the path of report.html.

    curves: loss weight -> the trainings that vary it.
    """
    with replaced_directory(directory) as draft:
        _write_all(draft, about, comparison, curves)
    return directory / PAGE


def _write_all(directory: Path, about: About, comparison: Comparison, curves: dict[str, list[Recorded]]) -> None:
    write_tables(directory / "tables", comparison, curves)
    parts = [_opening(about, comparison)]
    if comparison.runs:
        parts += _table_parts(directory, about, comparison)
    for weight, runs in curves.items():
        parts += _curve(directory, weight, runs)
    if comparison.runs:
        parts += ["## Settings", *_settings(comparison)]
    if about.problems:
        parts += ["## Trainings that failed", "\n".join(f"- {problem}" for problem in about.problems)]
    text = "\n\n".join(parts) + "\n"
    (directory / REPORT).write_text(_wrapped(text), encoding="utf-8")
    body = html_of_markdown(text)
    body = re.sub(r'src="(figures/[\w.]+)"', lambda found: f'src="{_embedded(directory / found[1])}"', body)
    (directory / PAGE).write_text(page(about.title, body), encoding="utf-8")


def _wrapped(text: str) -> str:
    """Markdown whose paragraphs have short lines. Tables, headings, pictures and code stay."""
    blocks = text.split("\n\n")
    return "\n\n".join(
        block if block.startswith(("|", "#", "```", "![", "- ")) else fill(block, WIDTH, break_on_hyphens=False)
        for block in blocks
    )


def _shown(command: str) -> str:
    """A command on several lines, if it is long."""
    lines, flags = [], re.split(r" (?=--)", command)
    for flag in flags:
        if lines and len(lines[-1]) + len(flag) < WIDTH - 2:
            lines[-1] += f" {flag}"
        else:
            lines.append(f"    {flag}" if lines else flag)
    return " \\\n".join(lines)


def _table_parts(directory: Path, about: About, comparison: Comparison) -> list[str]:
    """The sections that compare the models of the table."""
    bars = [BARS[measure] for measure in BARS if measure in measures_of(comparison.measures)]
    plots.save_png(plots.comparison_bars(comparison.spreads(), bars), directory / "figures" / "bars.png")
    lines = {model: [run.result.epochs for run in runs] for model, runs in comparison.runs.items()}
    curves = plots.learning_curves(lines, comparison.own_terms)
    plots.save_png(curves, directory / "figures" / "learning_curves.png")
    is_of_paper = comparison.published and not about.has_other_models
    parts = ["## Table 2" if is_of_paper else "## Test users", _table2_text(comparison)]
    parts += [headline_markdown(comparison), "![p, n and delta of every model](figures/bars.png)"]
    if comparison.reference in comparison.runs:
        parts += [
            f"## Difference from `{comparison.reference}`",
            _interval_text(about.manifest),
            _interval_table(comparison),
        ]
    elif len(comparison.runs) > 1:
        parts.append(f"No model is compared with another one, because `{comparison.reference}` is not among them.")
    parts += points_parts(comparison)
    parts += ["## At other k, and coverage", "On the last interactions:", _cutoff_table(comparison)]
    if any(name.startswith(POINTS) for name in comparison.any_run().result.test):
        parts += ["On many points:", _cutoff_table(comparison, POINTS)]
    parts += ["## Training", _training_table(comparison), "![learning curves](figures/learning_curves.png)"]
    parts.append("Curves: means over seeds, up to the epoch that all seeds reached. Shaded: the range over seeds.")
    return parts


def _opening(about: About, comparison: Comparison) -> str:
    counts = about.manifest.counts
    test = counts["test"]
    users = f"{test['positive_targets']:,} with a liked target and {test['negative_targets']:,} with a disliked one"
    models = f"{counted(len(comparison.runs), 'model')} with {comparison.seeds}; " if comparison.runs else ""
    written = f"{models}written {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC by"
    lines = [
        f"# {about.title}",
        written[0].upper() + written[1:],
        f"```\n{_shown(about.command)}\n```",
        f"Data: `{about.manifest.dataset}`, {counts['train_users']['users']:,} training users, "
        f"{about.manifest.num_items:,} items, {counts['validation']['users']:,} validation users. Test users: {users}. "
        f"Digest of the data: `{about.manifest.digest[:12]}`. Code: {about.code}.",
    ]
    if missing := missing_markdown(about.planned, about.recorded):
        lines.append(missing)
    if few := few_liked_targets("test", test["positive_targets"]):
        few = few[0].upper() + few[1:]
        lines.append(f"**{few}. This report shows that everything works, not which model is better.**")
    return "\n\n".join(lines)


def _table2_text(comparison: Comparison) -> str:
    text = (
        "Mean ± SD over seeds. `_p`: over users whose next item is a like. `d`: `_p` minus the same metric over users "
        "whose next item is a dislike. The whole catalog minus seen items is ranked. The tested epoch is the one with "
        "the best validation NDCG_p@10."
    )
    if comparison.published:
        text += " In brackets: the published figure (mean of 5 seeds), and the difference from it."
        settings = comparison.any_run().result.settings
        own, width = settings["encoder"]["hidden_size"], published_width(settings["dataset"])
        if width and own != width:
            text += f" **The published models have a hidden size of {width}, these models {own}.**"
    return text


def _interval_text(manifest: Manifest) -> str:
    test = manifest.counts["test"]
    resamples = resample_count(test["positive_targets"] + test["negative_targets"])
    users = f"{test['positive_targets']:,} users with a liked and {test['negative_targets']:,} with a disliked target"
    return (
        f"Differences of the means, with 95 % intervals of a paired bootstrap over the test users: {resamples:,} "
        f"resamples of {users}. A user's value is the mean over the seeds that both models have. The interval shows "
        "how much another draw of test users would change, not another seed. **Bold**: the interval does not contain 0."
    )


def _interval_table(comparison: Comparison) -> str:
    rows, intervals = [], comparison.intervals(HEADLINE_METRICS)
    for model in comparison.spreads():
        if model != comparison.reference:
            cells = [interval_text(intervals.get(model, {}).get(metric)) for metric in HEADLINE_METRICS]
            rows.append([f"`{model}`", str(comparison.shared_seeds(model)), *cells])
    return markdown_table(["model", "seeds of both", *map(metric_title, HEADLINE_METRICS)], rows)


def _cutoff_table(comparison: Comparison, start: str = "") -> str:
    """start: POINTS for many points, empty for last interactions."""
    spreads = comparison.spreads()
    cutoffs = sorted({int(m.rpartition("_")[2]) for m in comparison.any_run().result.test if m.startswith("coverage")})
    measures = measures_of(comparison.measures)
    names = [*(f"{name}_{group}" for name in measures for group in ("p", "n", "delta")), "coverage"]
    head = ["model", "k", *(metric_title(f"{name}_at_0").removesuffix("@0") for name in names)]
    rows = []
    for model, metrics in spreads.items():
        for k in cutoffs:
            cells = [spread_text(metrics.get(f"{start}{name}_at_{k}")) for name in names]
            rows.append([f"`{model}`" if k == cutoffs[0] else "", str(k), *cells])
    return markdown_table(head, rows)


def _training_table(comparison: Comparison) -> str:
    head = ["model", "seeds", "best validation NDCG_p@10", "best epoch", "epochs", "training", "an epoch", "workers"]
    chosen = sorted({name for runs in comparison.runs.values() for run in runs for name in run.result.weights})
    rows = []
    for model, runs in comparison.runs.items():
        results = [run.result for run in runs]
        best = spread([run.best_validation for run in runs])
        epoch_seconds = [statistics.median(e.seconds for e in r.epochs) for r in results]
        rows.append(
            [
                f"`{model}`",
                " ".join(str(run.seed) for run in runs),
                spread_text(best),
                span([r.best_epoch for r in results]),
                span([len(r.epochs) for r in results]),
                duration(statistics.mean(r.seconds for r in results)),
                f"{statistics.mean(epoch_seconds):.1f} s",
                span([r.num_workers for r in results]),
                *(_of_each([r.weights.get(name) for r in results]) for name in chosen),
            ]
        )
    return markdown_table([*head, *(f"{name}, chosen" for name in chosen)], rows)


def _of_each(values: list[float | None]) -> str:
    """The value of each seed; empty if there is none."""
    return " ".join(f"{value:g}" for value in values if value is not None)


def _curve(directory: Path, weight: str, runs: list[Recorded]) -> list[str]:
    points = curve_points(runs)
    model = runs[0].model
    figure = plots.weight_curve(weight, model, points, CURVE_METRICS)
    plots.save_png(figure, directory / "figures" / f"{weight}.png")
    seeds = {value: points[value][LOGGED_SELECTION].count for value in points}
    titles = [metric_title(m.removeprefix("val/")) + (", validation" if "/" in m else "") for m in CURVE_METRICS]
    rows = [
        [f"{value:g}", str(seeds[value]), *(spread_text(points[value].get(m)) for m in CURVE_METRICS)]
        for value in sorted(points)
    ]
    comparable = [value for value in points if seeds[value] == max(seeds.values())]
    chosen = max(comparable, key=lambda value: points[value][LOGGED_SELECTION].mean)
    of_which = "" if len(comparable) == len(points) else f" (among those with {counted(max(seeds.values()), 'seed')})"
    return [
        f"## Over {weight}",
        f"`{model}` with {counted(seeds.values(), 'seed')} for each value; whiskers: SD over seeds. The best value on "
        f"validation users is {chosen:g}{of_which}.",
        f"![over {weight}](figures/{weight}.png)",
        markdown_table([weight, "seeds", *titles], rows),
    ]


def _settings(comparison: Comparison) -> list[str]:
    """The settings in which models differ, and those that all share."""
    flat = {model: flatten(runs[0].result.settings) for model, runs in comparison.runs.items()}
    samples = any(settings["loss.cross_entropy"] != "exact" for settings in flat.values())
    sections = {*SHOWN, "sampled"} if samples else SHOWN
    names = [name for name in next(iter(flat.values())) if name.partition(".")[0] in sections]
    shared = [name for name in names if len({repr(settings.get(name)) for settings in flat.values()}) == 1]
    own = [name for name in names if name not in shared]
    parts = []
    if own:
        rows = [[f"`{model}`", *(str(settings[name]) for name in own)] for model, settings in flat.items()]
        parts.append(markdown_table(["model", *own], rows))
    values = next(iter(flat.values()))
    parts.append("The same for all: " + ", ".join(f"{name} {values[name]}" for name in shared) + ".")
    return parts


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
