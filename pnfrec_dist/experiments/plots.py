"""Figures of runs and comparisons, as matplotlib Figures that need no display."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pnfrec_dist.evaluation.bootstrap import Spread
from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION, metric_title
from pnfrec_dist.losses.terms import NO_LOSSES, term_title
from pnfrec_dist.training.events import EpochDone

COLORS = {
    "pnfrec": "#1b4965",
    "pnfrec_dot": "#457b9d",
    "pnfrec_pn": "#2a9d8f",
    "pnfrec_pc": "#8a9a5b",
    "pnfrec_signed": "#9b5de5",
    "sasrec_p": "#e09f3e",
    "sasrec_c": "#c1666b",
    "sasrec": "#7b2d26",
}
OTHERS = ("#6a4c93", "#4d908e", "#577590", "#9c6644")
FLOOR, INK = "#9aa0a6", "#33363b"


def save_png(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def learning_curves(runs: Mapping[str, Sequence[Sequence[EpochDone]]], own_terms: Iterable[str] = ()) -> Figure:
    """Each loss term and the validation score over epochs: each model's mean and range over its seeds.

    runs: model -> the epochs of each seed. A curve ends with the shortest training. own_terms: further terms of the
    trainings' settings, for their titles.
    """
    logged = dict.fromkeys(
        name for seeds in runs.values() for epochs in seeds for entry in epochs for name in entry.metrics
    )
    panels = [(name, term_title(name.removeprefix("train/"), own_terms)) for name in _losses(logged)]
    panels.append((LOGGED_SELECTION, "validation NDCG_p@10"))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (name, title) in enumerate(panels):
        for model, seeds in runs.items():
            lines = [[entry.metrics[name] for entry in epochs if name in entry.metrics] for epochs in seeds]
            _band(axes[place], [line for line in lines if line], _color(model, list(runs)), model)
        _finish(axes[place], title, "epoch")
        axes[place].xaxis.set_major_locator(MaxNLocator(integer=True))
    for unused in axes[len(panels) :]:
        unused.axis("off")
    if len(runs) > 1:
        handles, labels = axes[len(panels) - 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(runs), frameon=False)
    return figure


def _losses(logged: Iterable[str]) -> list[str]:
    """The logged names of the loss and its terms, in order."""
    return [name for name in logged if name.startswith("train/") and name.removeprefix("train/") not in NO_LOSSES]


def comparison_bars(models: dict[str, dict[str, Spread]], metrics: Sequence[tuple[str, str, str]]) -> Figure:
    """A panel for each (p, n, delta) triple of metrics: bars of each model, with the SD over seeds as whiskers."""
    figure = Figure(figsize=(6.2 * len(metrics), 3.8), layout="constrained")
    for axes, triple in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        width = 0.8 / len(models)
        for place, (model, found) in enumerate(models.items()):
            at = np.arange(3) + (place - (len(models) - 1) / 2) * width
            heights = [found[m].mean if m in found else 0.0 for m in triple]
            sds = [found[m].sd if m in found else math.nan for m in triple]
            whiskers = None if np.isnan(sds).all() else np.nan_to_num(sds)
            color = _color(model, list(models))
            axes.bar(at, heights, width * 0.92, yerr=whiskers, color=color, label=model, ecolor=INK, capsize=2)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(3), [metric_title(m) for m in triple])
        _finish(axes, "", "")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(models)), frameon=False)
    return figure


def weight_curve(weight: str, model: str, points: dict[float, dict[str, Spread]], metrics: Sequence[str]) -> Figure:
    """The paper's Figure 2: metrics over a loss weight, with the SD over seeds as whiskers.

    points: value -> metric -> spread.
    """
    figure = Figure(figsize=(4.6 * len(metrics), 3.4), layout="constrained")
    values = sorted(points)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        known = [v for v in values if metric in points[v]]
        means = [points[v][metric].mean for v in known]
        sds = [points[v][metric].sd for v in known]
        whiskers = None if np.isnan(sds).all() else np.nan_to_num(sds)
        color = _color(model, [model])
        axes.errorbar(known, means, yerr=whiskers, color=color, marker="o", markersize=4, capsize=3)
        is_validation = metric.startswith("val/")
        title = metric_title(metric.removeprefix("val/"))
        _finish(axes, f"{'validation' if is_validation else 'test'} {title}", weight)
    return figure


def trials_over_parameters(names: Sequence[str], points: Sequence[dict[str, Any]], scores: Sequence[float]) -> Figure:
    """A panel for each searched setting: scores of trials over its values; log scale for a wide range of values."""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, name in enumerate(names):
        values = [point[name] for point in points]
        at, labels = _places(values)
        axes[place].scatter(at, scores, s=22, color=COLORS["pnfrec"], alpha=0.75, linewidths=0)
        if labels:
            axes[place].set_xticks(range(len(labels)), labels)
        elif min(values) > 0 and max(values) / min(values) >= 20:
            axes[place].set_xscale("log")
        _finish(axes[place], "", name)
    axes[0].set_ylabel("validation NDCG_p@10", fontsize=9)
    for unused in axes[len(names) :]:
        unused.axis("off")
    return figure


def parallel_coordinates(
    names: Sequence[str], points: Sequence[dict[str, Any]], scores: Sequence[float], title: str
) -> Figure:
    """A line for each trial, with an axis for each setting and for the score; the best tenth in colour."""
    figure = Figure(figsize=(2.4 * (len(names) + 1), 4.0), layout="constrained")
    axes = figure.subplots()
    columns: list[Sequence[float]] = []
    for place, name in enumerate([*names, title]):
        values = list(scores) if place == len(names) else [point[name] for point in points]
        at, labels = _places(values)
        is_log = not labels and min(at) > 0 and max(at) / min(at) >= 20
        scaled = [math.log(value) for value in at] if is_log else at
        low, span = min(scaled), max(scaled) - min(scaled) or 1.0
        columns.append([(value - low) / span for value in scaled])
        for value in sorted(set(at)) if len(set(at)) <= 6 else (min(at), max(at)):
            height = ((math.log(value) if is_log else value) - low) / span
            text = labels[int(value)] if labels else f"{value:.4g}"
            axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, color=INK)
    best = sorted(range(len(scores)), key=lambda trial: scores[trial])
    first = len(best) - max(1, len(best) // 10)
    for order, trial in enumerate(best):
        style = {"color": COLORS["sasrec_p"], "linewidth": 2.0} if order >= first else {"color": FLOOR, "alpha": 0.5}
        axes.plot(range(len(columns)), [column[trial] for column in columns], **style)
    axes.set_xticks(range(len(columns)), [*names, title], fontsize=8.5)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    axes.grid(axis="x", color="#c9ccd1", linewidth=0.8)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Positions of values on an axis, and labels if the values are not numbers."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], []
    labels = sorted({str(value) for value in values})
    return [float(labels.index(str(value))) for value in values], labels


def _band(axes: Axes, lines: Sequence[Sequence[float]], color: str, label: str) -> None:
    if not lines:
        return
    shortest = min(map(len, lines))
    values = np.array([line[:shortest] for line in lines])
    epochs = np.arange(1, shortest + 1)
    axes.plot(epochs, values.mean(0), color=color, label=label, linewidth=1.6)
    if len(lines) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)


def _color(model: str, models: Sequence[str]) -> str:
    if model.startswith("popularity"):
        return FLOOR if model == "popularity" else "#5f6368"
    return COLORS.get(model) or OTHERS[[m for m in models if m not in COLORS].index(model) % len(OTHERS)]


def _finish(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#e4e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
