"""Pages contain the given texts, escaped, and load nothing from elsewhere."""

import re
from html.parser import HTMLParser

from pnfrec_dist.files.html_pages import html_of_markdown, html_table, page, paragraph
from pnfrec_dist.files.tables import markdown_table

NASTY = 'a<b> & "c"'


class Reader(HTMLParser):
    """The texts of a page by the tag around each, and the tags that were left open."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.classes: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += [value or "" for name, value in attrs if name == "class"]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))


def test_a_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    content = page(NASTY, paragraph(NASTY, "loud") + html_table(["a", "b"], [["1", "2"]], is_text=True))
    read = Reader(content)
    assert content.startswith("<!doctype html>") and not read.open
    assert ("title", NASTY) in read.texts and ("p", NASTY) in read.texts
    assert not re.search(r"https?://|<script|<link|@import", content)
    style = dict(read.texts)["style"]
    assert all(f".{kind}" in style for kind in read.classes), "a class without a look"


def test_cells_are_escaped_and_in_their_place() -> None:
    read = Reader(html_table(["name", NASTY], [[NASTY, "1"], ["x", NASTY]], NASTY))
    head, rows = [("th", "name"), ("th", NASTY)], [("th", NASTY), ("td", "1"), ("th", "x"), ("td", NASTY)]
    assert read.texts == [("h2", NASTY), *head, *rows]
    assert not read.open and not read.classes
    assert Reader(html_table(["a", "b"], [["1", "2"]], is_text=True)).classes == ["text"]


def test_markdown_with_a_table() -> None:
    read = Reader(html_of_markdown(f"# {NASTY}\n\n{markdown_table(['a', 'b'], [['`x`', '1|2']])}\n"))
    assert read.texts[0] == ("h1", NASTY)
    assert read.texts[1:] == [("th", "a"), ("th", "b"), ("code", "x"), ("td", "1|2")]
