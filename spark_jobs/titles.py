"""Item titles: a text file next to the interactions -> titles.parquet, by item_id."""

import csv
import dataclasses
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.config.dataset_settings import TitlesSettings
from pnfrec_dist.data.schema import ITEMS_NAME, TITLES_NAME, TITLES_SCHEMA, FileEntry
from pnfrec_dist.errors import InputError, nearest
from pnfrec_dist.files.locations import Location
from spark_jobs.writer import write_file


def read_titles(file: Location, settings: TitlesSettings) -> dict[str, str] | None:
    """Raw item id -> title, or None if there is no such file. Raises InputError if it cannot be read."""
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode(settings.encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{file} cannot be read ({error}); set titles.encoding (latin-1, ...)") from error
    rows = _rows(text.removeprefix("\ufeff"), settings.separator)
    columns = next(rows, []) if settings.header else list(settings.fields)
    for name, what in ((settings.item, "item"), (settings.title, "title")):
        if name not in columns:
            raise InputError(f"{file} has no column {name!r} (titles.{what}); {nearest(name, columns)}")
    item, title = columns.index(settings.item), columns.index(settings.title)
    longest = max(item, title)
    return {row[item].strip(): row[title].strip() for row in rows if len(row) > longest and row[title].strip()}


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    lines = text.splitlines()
    if len(separator) == 1:
        return csv.reader(lines, delimiter=separator)
    return (line.split(separator) for line in lines)


def write_titles(titles: dict[str, str], directory: Location) -> FileEntry:
    """Writes titles.parquet for the items of the catalog, which must already be in `directory`."""
    with (directory / ITEMS_NAME).open() as content:
        raw_ids = pq.read_table(content, columns=["raw_item_id"])["raw_item_id"].to_pylist()
    found = [(number, titles[raw]) for number, raw in enumerate(raw_ids, 1) if raw in titles]
    rows = [{"item_id": number, "title": title} for number, title in found]
    batches = pa.Table.from_pylist(rows, schema=TITLES_SCHEMA).to_batches()
    entry = write_file(batches, directory / TITLES_NAME, TITLES_SCHEMA)
    return dataclasses.replace(entry, path=TITLES_NAME)
