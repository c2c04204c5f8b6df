"""Tables: as Markdown, as text in a terminal, as CSV."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from pnfrec_dist.files.atomic import replaced

Row = Sequence[str]
GAP = "  "


def markdown_table(head: Row, rows: Iterable[Row], align: str = "") -> str:
    """No newline at the end. align: "<" (left) or ">" (right) for each column; "": the first left, the others right."""
    marks = ["---" if side == "<" else "---:" for side in align or _numbers(head)]
    lines = [[cell.replace("|", r"\|") for cell in row] for row in [head, marks, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text_table(head: Row, rows: Iterable[Row], align: str = "", *, first_width: int = 0, other_width: int = 0) -> str:
    """Columns as wide as their widest cell, without a newline at the end.

    align: as in markdown_table; first_width, other_width: minimum width of the first column and of the others.
    """
    lines = [head, *rows]
    least = [first_width, *[other_width] * (len(head) - 1)]
    widths = [max(wanted, *(len(line[place]) for line in lines)) for place, wanted in enumerate(least)]
    columns = list(zip(align or _numbers(head), widths, strict=True))
    cells = ([f"{cell:{side}{width}}" for cell, (side, width) in zip(line, columns, strict=True)] for line in lines)
    return "\n".join(GAP.join(line).rstrip() for line in cells)


def write_csv(path: Path, head: Row, rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file in one move, and creates its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _numbers(head: Row) -> str:
    """The alignment of a table with a name and numbers in each row."""
    return "<" + ">" * (len(head) - 1)
