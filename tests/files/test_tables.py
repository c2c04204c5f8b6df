import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pnfrec_dist.files.tables import markdown_table, text_table, write_csv

ROOT = Path(__file__).parents[2]
HEAD = ["model", "HR", "users"]
ROWS = [["`a`", ".1", "1,000"], ["longer", "-", ""]]


def test_markdown() -> None:
    assert markdown_table(HEAD, ROWS).splitlines() == [
        "| model | HR | users |",
        "| --- | ---: | ---: |",
        "| `a` | .1 | 1,000 |",
        "| longer | - |  |",
    ]
    assert markdown_table(HEAD, iter(ROWS), "><>").splitlines()[1] == "| ---: | --- | ---: |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_markdown_is_the_table_that_a_reader_of_markdown_sees() -> None:
    """Also if a cell contains the character that ends cells."""
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(["a", "b"], [["x|y", "1"]]))
    assert "<td>x|y</td>" in html and html.count("<td") == 2


def test_text() -> None:
    assert text_table(HEAD, ROWS).splitlines() == [
        "model   HR  users",
        "`a`     .1  1,000",
        "longer   -",
    ]
    assert text_table(HEAD, iter(ROWS), ">><").splitlines() == [
        " model  HR  users",
        "   `a`  .1  1,000",
        "longer   -",
    ]


def test_text_of_several_tables_can_be_as_wide() -> None:
    assert text_table(["a", "b"], [["1", "2"]], first_width=3, other_width=5).splitlines() == [
        "a        b",
        "1        2",
    ]
    assert text_table(["long", "b"], [], first_width=3, other_width=0) == "long  b"


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "tables" / "a.csv"
    rows = [[1, 0.5, 'a,"b"'], [2, None, "line\nbreak"]]
    write_csv(file, ["n", "x", "text"], rows)
    assert file.read_bytes().startswith(b"n,x,text\n1,0.5,")
    with file.open(newline="", encoding="utf-8") as opened:
        assert list(csv.reader(opened)) == [["n", "x", "text"], ["1", "0.5", 'a,"b"'], ["2", "", "line\nbreak"]]

    def broken() -> Iterator[list[int]]:
        yield [3, 4, 5]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_csv(file, ["n", "x", "text"], broken())
    assert file.read_bytes().startswith(b"n,x,text\n1,") and [p.name for p in file.parent.iterdir()] == ["a.csv"]


def test_no_other_module_writes_the_marks_of_a_table() -> None:
    own, found = Path("pnfrec_dist/files/tables.py"), []
    for place in ("pnfrec_dist", "spark_jobs", "tune", "benchmarks", "docs"):
        for path in (ROOT / place).rglob("*.py"):
            if re.search(r"\|\s?:?---|\"\| | \|\"", path.read_text(encoding="utf-8")):
                found.append(path.relative_to(ROOT))
    assert found == [own]
