"""HTML pages for reports, with a common style, each a single file."""

import html
from collections.abc import Iterable, Sequence

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.55 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 14px }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }}
th {{ font-weight: 600 }} th:first-child, td:first-child {{ text-align: left }}
td.text {{ text-align: left; font-family: ui-monospace, monospace; font-size: 13px }}
img {{ max-width: 100% }} code {{ background: #f3f4f5; padding: .1rem .25rem }}
pre {{ background: #f3f4f5; padding: .6rem 1rem; overflow-x: auto }} pre code {{ padding: 0 }}
figure {{ display: inline-block; margin: .5rem 1rem .5rem 0 }} figcaption {{ color: #555; font-size: 13px }}
.loud {{ background: #fdecea; border-left: 4px solid #b3261e; padding: .5rem 1rem; font-weight: 600 }}
.quiet {{ color: #555 }}
</style></head><body>
{body}
</body></html>
"""


def page(title: str, body: str) -> str:
    """A whole page. title: plain text; body: HTML, which may use the classes text (cells of words), loud and quiet."""
    return _PAGE.format(title=html.escape(title), body=body)


def html_of_markdown(text: str) -> str:
    """CommonMark with tables -> HTML; HTML tags in the text are escaped."""
    from markdown_it import MarkdownIt  # a machine that only trains or prepares data may lack it

    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text. kind: "loud", "quiet" or ""."""
    return f"<p{_class(kind)}>{html.escape(text)}</p>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", *, is_text: bool = False) -> str:
    """A table of plain text; the first cell of a row is its name. title: heading above; is_text: words, not numbers."""
    kind = _class("text" if is_text else "")
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
    for name, *cells in rows:
        values = "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th>{html.escape(name)}</th>{values}</tr>")
    heading = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f"{heading}<table>{''.join(lines)}</table>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
