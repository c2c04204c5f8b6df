"""Histograms of the built data set, as SVG for report.html."""

import html
import io
import itertools
import warnings
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pnfrec_dist.config.source_settings import NUMBERS
from spark_jobs.quantile import Bucket
from spark_jobs.times import ROWS, TICKS, date_of

POSITIVE, NEGATIVE, INK = "#2a6f97", "#c1666b", "#33363b"


@dataclass(frozen=True)
class Distributions:
    """Counts for the histograms. lengths: kind -> {length of a train user's whole history: users};
    popularity: {train interactions of an item: items}; relevance and activity: over the filtered interactions."""

    lengths: dict[str, dict[int, int]] = field(default_factory=dict)
    popularity: dict[int, int] = field(default_factory=dict)
    relevance: list[Bucket] = field(default_factory=list)
    activity: list[Bucket] = field(default_factory=list)


def draw(distributions: Distributions, threshold: float, split: int | None, unit: str) -> str:
    """The histograms as SVG. split: T, in `unit`; None without a holdout."""
    return "".join(
        [
            _length_figure(distributions.lengths),
            _popularity_figure(distributions.popularity),
            _relevance_figure(distributions.relevance, threshold),
            _activity_figure(distributions.activity, split, unit),
        ]
    )


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _length_figure(lengths: dict[str, dict[int, int]]) -> str:
    figure, axes = _axes("Sequence lengths in train (before the cut to max_history)", "length", "users")
    top = max((max(counts, default=1) for counts in lengths.values()), default=1)
    edges = [0, *(2**power for power in range(max(top, 1).bit_length() + 1))]
    for kind, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
        counts = lengths.get(kind, {})
        axes.hist(list(counts), bins=edges, weights=list(counts.values()), color=color, alpha=0.55, label=kind)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "number of users by the number of their likes and of their dislikes")


def _popularity_figure(popularity: dict[int, int]) -> str:
    figure, axes = _axes("Popularity", "item, most popular first", "train interactions")
    places, heights, place = [], [], 0
    for count in sorted(popularity, reverse=True):
        places += [place + 1, place + popularity[count]]
        heights += [count, count]
        place += popularity[count]
    axes.plot(places, heights, color=POSITIVE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    return _svg(figure, "how often each item occurs in train")


def _relevance_figure(relevance: list[Bucket], threshold: float) -> str:
    figure, axes = _axes("Relevance", "relevance", "interactions")
    distinct = all(b.low == b.high for b in relevance)
    span = (relevance[-1].high - relevance[0].low) if relevance else 0.0
    gaps = [b.low - a.low for a, b in itertools.pairwise(relevance)]
    width = 0.8 * min(gaps) if distinct and gaps else (span / 50 or 0.8)
    middles = [(b.low + b.high) / 2 for b in relevance]
    colors = [POSITIVE if b.high >= threshold else NEGATIVE for b in relevance]
    axes.bar(middles, [b.count for b in relevance], width=width, color=colors)
    return _svg(figure, f"blue: positive (relevance >= {threshold:g})")


def _activity_figure(activity: list[Bucket], split: int | None, unit: str) -> str:
    figure, axes = _axes("Activity over time", "", "interactions")
    days = 1 if unit in (ROWS, NUMBERS) else 86_400 * TICKS[unit]  # matplotlib's dates are days since 1970
    if activity:
        span = max(activity[-1].high - activity[0].low, 1) / days
        middles = [(b.low + b.high) / 2 / days for b in activity]
        axes.bar(middles, [b.count for b in activity], width=span / 60, color=INK)
        if unit not in (ROWS, NUMBERS) and date_of(int(activity[-1].high), unit)[0].isdigit():
            axes.xaxis_date()
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    if split is None:
        return _svg(figure, "all interactions train")
    axes.axvline(split / days, color=NEGATIVE, linewidth=1.5)
    return _svg(figure, f"red line: T = {date_of(split, unit)}; train is before T, the holdout from T on")


def _svg(figure: Figure, caption: str) -> str:
    out = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "pnfrec", "svg.fonttype": "none"}),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # axes of 1e308 and more
    ):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"
