"""What was built, for people: the summary in the terminal, and report.html beside the manifest."""

import datetime
import html
import io
import itertools
import textwrap
import warnings
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pnfrec_dist.config.dataset_settings import ExpectedSettings
from pnfrec_dist.data.schema import SPLITS, Manifest
from pnfrec_dist.files.tables import GAP, text_table
from spark_jobs.clean import TICKS
from spark_jobs.quantile import Bucket, ranked

LENGTHS = ("all", "positive", "negative")
FRACTIONS = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "max": 1.0}
LONGEST_ROW = 300
POSITIVE, NEGATIVE, INK = "#2a6f97", "#c1666b", "#33363b"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }} th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd }}
th {{ text-align: right; font-weight: 600 }} th:first-child {{ text-align: left }}
td {{ text-align: right; font-variant-numeric: tabular-nums }}
td.text {{ text-align: left; font-family: ui-monospace, monospace; font-size: 13px }}
figure {{ display: inline-block; margin: .5rem 1rem .5rem 0 }} figcaption {{ color: #555; font-size: 13px }}
.loud {{ background: #fdecea; border-left: 4px solid #b3261e; padding: .5rem 1rem }}
.quiet {{ color: #555 }}
</style></head><body>
{body}
</body></html>
"""


@dataclass(frozen=True)
class Distributions:
    """Counts for the histograms. lengths: kind -> {length of a train user's whole history: users};
    popularity: {train interactions of an item: items}; relevance and activity: over the filtered interactions."""

    lengths: dict[str, dict[int, int]] = field(default_factory=dict)
    popularity: dict[int, int] = field(default_factory=dict)
    relevance: list[Bucket] = field(default_factory=list)
    activity: list[Bucket] = field(default_factory=list)


def length_quantiles(lengths: dict[int, int]) -> dict[str, int]:
    """The columns of FRACTIONS."""
    return dict(zip(FRACTIONS, ranked(lengths, list(FRACTIONS.values())), strict=True))


def negative_share(manifest: Manifest) -> float:
    """Share of the filtered interactions that is negative."""
    size = manifest.counts["filtered"]
    return 1 - size["positives"] / size["rows"]


def date_of(timestamp: int, unit: str) -> str:
    """A timestamp as text, UTC."""
    try:
        return datetime.datetime.fromtimestamp(timestamp / TICKS[unit], datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "beyond the year 9999"


def compare(manifest: Manifest, expected: ExpectedSettings) -> list[tuple[str, str, str, bool]]:
    """(what, found, known, equal) for every number that is known of a build from the official file."""
    counts, size = manifest.counts, manifest.counts["filtered"]
    numbers = [
        ("rows", counts["read"]["rows"], expected.rows),
        ("users", size["users"], expected.users),
        ("items", size["items"], expected.items),
        ("actions", size["rows"], expected.actions),
        ("negative percent", round(100 * negative_share(manifest)), expected.negative_percent),
    ]
    lines = []
    for name, found, known in numbers:
        if known is not None:
            options = {found, counts["train"]["items"]} if name == "items" else {found}
            shown = known if known in options else found
            lines.append((name, f"{shown:,}", f"{known:,}", known in options))
    return lines


def complaint(manifest: Manifest, expected: ExpectedSettings) -> str:
    """What to say of a build that misses its known row; empty when it does not."""
    missed = [(what, found, known) for what, found, known, equal in compare(manifest, expected) if not equal]
    if not missed:
        return ""
    lines = [f"{what}: {found}, known {known}" for what, found, known in missed]
    return f"{manifest.dataset} is not what the official file gives: {'; '.join(lines)}"


def summary(manifest: Manifest, expected: ExpectedSettings) -> str:
    """Table 1's columns, split sizes and sequence lengths, as text."""
    blocks = []
    for title, (head, *rows) in _tables(manifest, expected):
        table = textwrap.indent(text_table(head, rows), GAP)
        blocks.append(f"{title}\n{table}" if title else table)
    return "\n\n".join(blocks)


def _tables(manifest: Manifest, expected: ExpectedSettings) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) with the first row as header."""
    counts = manifest.counts
    size, train = counts["filtered"], counts["train"]
    tables = [
        (
            f"{manifest.dataset}: positive from {manifest.threshold:g}, "
            f"T = {manifest.split_timestamp} ({date_of(manifest.split_timestamp, manifest.timestamp_unit)} UTC)",
            [
                ["users", "items", "actions", "negative"],
                [f"{size['users']:,}", f"{size['items']:,}", f"{size['rows']:,}", f"{negative_share(manifest):.1%}"],
            ],
        )
    ]
    known = compare(manifest, expected)
    if known:
        rows = [[what, found, number, "yes" if equal else "NO"] for what, found, number, equal in known]
        tables.append(("official file", [["", "found", "known", "equal"], *rows]))
    rows = [["split", "users", "positive targets", "negative targets", "items", "actions"]]
    rows.append(["train", f"{train['users']:,}", "", "", f"{train['items']:,}", f"{train['rows']:,}"])
    least = manifest.settings["split"]["min_positives"]
    rows.append([f"train, {least}+ likes", f"{counts['train_users']['users']:,}", "", "", "", ""])
    for part in SPLITS[1:]:
        numbers = counts[part]
        targets = [f"{numbers[f'{side}_targets']:,}" for side in ("positive", "negative")]
        rows.append([part, f"{numbers['users']:,}", *targets, "", ""])
    tables.append(("", rows))
    rows = [["train history", *FRACTIONS]]
    for kind in LENGTHS:
        rows.append([kind, *(f"{counts[f'length_{kind}'][name]:,}" for name in FRACTIONS)])
    tables.append(("", rows))
    return tables


# ---- report.html ------------------------------------------------------------------------------------------


def render_report(
    manifest: Manifest, expected: ExpectedSettings, figures: str, examples: list[tuple[str, str, str]]
) -> str:
    """The page. figures: draw()'s; examples: (file, row, reason) of the first quarantined rows."""
    body = [f"<h1>{html.escape(manifest.dataset)}</h1>"]
    wrong = complaint(manifest, expected)
    if wrong:
        body.append(f'<p class="loud"><strong>{html.escape(wrong)}</strong></p>')
    for title, rows in _tables(manifest, expected):
        body.append(_html_table(rows, title))
    body.append(figures)
    body.append("<h2>Every row of the source</h2>" + _html_table(_accounting(manifest)))
    reasons = [(k, n) for k, n in manifest.counts["quarantined"].items() if k != "rows"]
    if reasons:
        ordered = sorted(reasons, key=lambda pair: (-pair[1], pair[0]))
        body.append(_html_table([["quarantined because", "rows"], *([why, f"{n:,}"] for why, n in ordered)]))
        shown = [[file, row[:LONGEST_ROW], reason] for file, row, reason in examples]
        body.append(_html_table([["first of them in", "row", "reason"], *shown], text=True))
    sources = [[entry.path, f"{entry.bytes:,}", entry.sha256[:16]] for entry in manifest.sources[:50]]
    body.append("<h2>Source</h2>" + _html_table([["file", "bytes", "sha256"], *sources], text=True))
    if len(manifest.sources) > len(sources):
        body.append(f'<p class="quiet">and {len(manifest.sources) - len(sources):,} more files</p>')
    body.append(f'<p class="quiet">settings {manifest.settings_hash[:16]}, content {manifest.digest[:16]}</p>')
    return _PAGE.format(title=html.escape(f"{manifest.dataset}: prepared data set"), body="\n".join(body))


def _accounting(manifest: Manifest) -> list[list[str]]:
    counts = manifest.counts
    names = {"interactions": "kept", "quarantined": "quarantined", "deduplicated": "duplicates", "read": "read"}
    return [["rows", ""], *([shown, f"{counts[stage]['rows']:,}"] for stage, shown in names.items())]


def _html_table(rows: list[list[str]], title: str = "", *, text: bool = False) -> str:
    def cells(row: list[str], tag: str) -> str:
        kind = ' class="text"' if text and tag == "td" else ""
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell in row)

    head = f"<tr>{cells(rows[0], 'th')}</tr>"
    lines = "".join(f"<tr><th>{html.escape(row[0])}</th>{cells(row[1:], 'td')}</tr>" for row in rows[1:])
    caption = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"{caption}<table>{head}{lines}</table>"


def draw(distributions: Distributions, threshold: float, split: int, unit: str) -> str:
    """The histograms as SVG. split: T, in `unit`."""
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
    figure, axes = _axes("Sequence lengths in train (before max_history)", "length", "users")
    top = max((max(counts, default=1) for counts in lengths.values()), default=1)
    edges = [0, *(2**power for power in range(max(top, 1).bit_length() + 1))]
    for kind, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
        counts = lengths.get(kind, {})
        axes.hist(list(counts), bins=edges, weights=list(counts.values()), color=color, alpha=0.55, label=kind)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure, "users by the length of their likes and dislikes")


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
    return _svg(figure, f"positive (blue) from {threshold:g} on")


def _activity_figure(activity: list[Bucket], split: int, unit: str) -> str:
    figure, axes = _axes("Activity over time", "", "interactions")
    days = 86_400 * TICKS[unit]  # matplotlib's dates are days since 1970
    if activity:
        span = max(activity[-1].high - activity[0].low, 1) / days
        middles = [(b.low + b.high) / 2 / days for b in activity]
        axes.bar(middles, [b.count for b in activity], width=span / 60, color=INK)
        if date_of(int(activity[-1].high), unit)[0].isdigit():
            axes.xaxis_date()
    axes.axvline(split / days, color=NEGATIVE, linewidth=1.5)
    axes.tick_params(axis="x", labelrotation=30, labelsize=8)
    return _svg(figure, f"T = {date_of(split, unit)} UTC (red): train before, holdout after")


def _svg(figure: Figure, caption: str) -> str:
    out = io.StringIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "pnfrec", "svg.fonttype": "none"}),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # axes of 1e308 and more
    ):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"
