"""Item titles: a text file next to the interactions -> titles.parquet, by item_id."""

import csv
import dataclasses
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.config.source_settings import TitlesSettings
from pnfrec_dist.data.schema import ITEMS_NAME, TITLES_NAME, TITLES_SCHEMA, FileEntry
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.files.locations import Location
from spark_jobs.writer import write_file

MOST_LINES = 100
"""of a title in quotes"""


def read_titles(file: Location, settings: TitlesSettings) -> dict[str, str] | None:
    """Raw item id -> title, or None if there is no such file. Raises InputError if it cannot be read."""
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode(settings.encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{file} cannot be read ({error}); set titles.encoding (latin-1, ...)") from error
    lines = re.split("\r\n|\n", text.removeprefix("\ufeff"))
    columns = next(_rows(lines[:1], settings, 0), []) if settings.header else list(settings.fields)
    for name, what in ((settings.item, "item"), (settings.title, "title")):
        if name not in columns:
            raise InputError(f"{file} has no column {name!r} (titles.{what}); {nearest(name, columns)}")
    item, title = columns.index(settings.item), columns.index(settings.title)
    rows = _rows(lines[settings.header :], settings, len(columns) if settings.header else 0)
    longest = max(item, title)
    return {row[item].strip(): row[title].strip() for row in rows if len(row) > longest and row[title].strip()}


def _rows(lines: list[str], settings: TitlesSettings, columns: int) -> Iterator[list[str]]:
    """The fields of each row. columns: how many a quoted row must have; 0: any number.

    A quoted field may go over several lines. A line whose quotes do not give a row is taken as it is.
    """
    start = 0
    while start < len(lines):
        fields, end = lines[start].split(settings.separator), start + 1
        if settings.quote and settings.quote in lines[start] and len(settings.separator) == 1:
            for stop in range(start + 1, min(start + MOST_LINES, len(lines)) + 1):
                found = _quoted("\n".join(lines[start:stop]), settings)
                if found is not None and columns in (0, len(found)):
                    fields, end = found, stop
                    break
        if lines[start]:
            yield fields
        start = end


def _quoted(text: str, settings: TitlesSettings) -> list[str] | None:
    """The fields of a row with quotes; None if a quote does not close."""
    try:
        reader = csv.reader([text], delimiter=settings.separator, quotechar=settings.quote, strict=True)
        return next(reader, None)
    except csv.Error:
        return None


def write_titles(titles: dict[str, str], directory: Location) -> FileEntry:
    """Writes titles.parquet for the items of the catalog, which must already be in `directory`.

    A title's item 104.0 is item 104, unless the catalog has 104.0.
    """
    titles = {re.sub(r"^(-?\d+)\.0+$", r"\1", raw): title for raw, title in titles.items()} | titles
    with (directory / ITEMS_NAME).open() as content:
        raw_ids = pq.read_table(content, columns=["raw_item_id"])["raw_item_id"].to_pylist()
    found = [(number, titles[raw]) for number, raw in enumerate(raw_ids, 1) if raw in titles]
    rows = [{"item_id": number, "title": title} for number, title in found]
    batches = pa.Table.from_pylist(rows, schema=TITLES_SCHEMA).to_batches()
    entry = write_file(batches, directory / TITLES_NAME, TITLES_SCHEMA)
    return dataclasses.replace(entry, path=TITLES_NAME)
