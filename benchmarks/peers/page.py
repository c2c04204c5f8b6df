"""The tables of docs/peers.md."""

from collections.abc import Iterable

from benchmarks.peers.speed import Row
from pnfrec_dist.files.tables import markdown_table

PRECISIONS = {"32-true": "fp32", "float32": "fp32", "bf16-mixed": "bf16"}


def speed_table(rows: Iterable[Row]) -> str:
    return markdown_table(
        ["system", "N", "d", "precision", "users/s", "peak memory, GB"],
        [[row.system, f"{row.num_items:,}", str(row.hidden_size), precision(row), *figures(row)] for row in rows],
    )


def ratio_table(rows: list[Row]) -> str:
    """This library's fastest row beside each peer's fastest, for each width."""
    found = []
    for num_items, width in dict.fromkeys((row.num_items, row.hidden_size) for row in rows):
        best: dict[str, Row] = {}
        for row in rows:
            name = system(row)
            is_here = (row.num_items, row.hidden_size) == (num_items, width) and not row.problem
            if is_here and row.users_per_s > best.get(name, Row("", "", 0, 0)).users_per_s:
                best[name] = row
        own = best.pop(OWN, None)
        if own is None:
            continue
        for name, row in best.items():
            speed, memory = own.users_per_s / row.users_per_s, row.peak_gb / own.peak_gb
            found.append([name, f"{num_items:,}", str(width), f"{speed:.1f}x", f"{memory:.1f}x"])
    return markdown_table(["beside", "N", "d", "users/s of ours beside it", "its memory beside ours"], found)


def lists_table(rows: Iterable[Row]) -> str:
    return markdown_table(
        ["system", "d", "precision", "users/s"],
        [[r.system, str(r.hidden_size), precision(r), f"{r.lists_per_s:,.0f}"] for r in rows if r.lists_per_s],
    )


def metrics_table(differences: dict[str, dict[str, float]]) -> str:
    return markdown_table(
        ["metric", "largest difference", "with repeated items left in"],
        [[name.upper(), f"{of['difference']:.0e}", f"{of['raw_difference']:.2f}"] for name, of in differences.items()],
    )


OWN = "sasrec_p"


def system(row: Row) -> str:
    """Without the number of workers."""
    return row.system.partition(",")[0]


def precision(row: Row) -> str:
    return PRECISIONS.get(row.precision, row.precision)


def figures(row: Row) -> list[str]:
    return [row.problem, ""] if row.problem else [f"{row.users_per_s:,.0f}", f"{row.peak_gb:.1f}"]
