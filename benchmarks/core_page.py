"""The page of benchmarks.core: its texts, its tables, and its plot."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pnfrec_dist.files.tables import markdown_table

CATALOGS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
CURVES = {
    "materialised": "F.cross_entropy on all logits",
    "chunked": "exact, chunked",
    "tiled": "exact, tiled",
    "sampled": "sampled softmax, 1,024 items",
    "sharded": "a training step, table sharded over 2 workers",
}
ROW_SECONDS = 200.0
"""A point of the plot that would take longer, judged by the one before, is left out."""


INTRODUCTION = (
    "`make bench` writes this page in half an hour. Rows that name a GPU were measured on it, all others on this "
    "machine:"
)
READING = (
    "N is the number of items, d the hidden size, T the number of targets. Each measurement runs in a process of its "
    "own, on one thread unless its row says otherwise. Times are medians. The ratio is the first result divided by the "
    "second. For time and memory, a ratio below 1 means that this project needs less; for users/s, a ratio above 1 "
    "means that it is faster. Useful FLOP/s count the matmuls over real targets, but not padding, nor logits that are "
    "computed again."
)
READING_CURVES = (
    "Each cell is seconds / peak MiB. The first four rows are forward and backward of the cross-entropy with d = 64, "
    "T = 512, fp32; memory is counted beyond the start, with the table's gradient. The last row is a whole training "
    "step with 256 targets on each of 2 workers, and the whole memory of a worker. A dash means that it does not fit "
    f"this machine or would take more than {ROW_SECONDS:.0f} s."
)


@dataclass(frozen=True)
class Row:
    what: str
    result: str
    other: str = "-"
    """what it is compared with"""
    other_result: str = "-"
    ratio: str = "-"


def draw(points: dict[str, list[list[float]]], file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, column, label in zip(axes, (1, 2), ("seconds", "peak MiB"), strict=True):
        for name, found in points.items():
            axis.loglog([p[0] for p in found], [p[column] for p in found], marker="o", label=CURVES[name])
        axis.set_xlabel("items in the catalog")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def page(results: dict[str, Any], parts: Iterable[str]) -> str:
    """The page, in Markdown, with the rows in the order of parts."""
    rows = [list(row.values()) for name in parts for row in results["rows"].get(name, [])]
    head = ["measurement", "this project", "compared with", "its result", "ratio"]
    points = [
        [CURVES[name], *(_point(found, items) for items in CATALOGS)] for name, found in results["curves"].items()
    ]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            *_wrapped(f"{INTRODUCTION} {results['machine']}."),
            "",
            *_wrapped(READING),
            "",
            markdown_table(head, rows, "<><>>"),
            "",
            "## Cost over the size of the catalog",
            "",
            *_wrapped(READING_CURVES),
            "",
            markdown_table(["", *(f"N = {items:,}" for items in CATALOGS)], points),
            "",
            "![seconds and memory over the number of items](benchmarks.svg)",
            "",
        ]
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, break_on_hyphens=False)


def _point(found: list[list[float]], items: int) -> str:
    return next((f"{seconds:.3g} / {mib:.0f}" for n, seconds, mib in found if n == items), "-")
