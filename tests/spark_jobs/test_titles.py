from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.config.source_settings import TitlesSettings
from pnfrec_dist.data.schema import ITEMS_SCHEMA
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.titles import read_titles, write_titles

LIKE_ML1M = TitlesSettings(
    file="movies.dat", separator="::", encoding="latin-1", header=False, fields=("item", "title")
)


def write(file: Path, content: bytes) -> Location:
    file.write_bytes(content)
    return Location(file)


def test_text_without_a_header_of_another_encoding(tmp_path: Path) -> None:
    file = write(
        tmp_path / "movies.dat", "1::Léon (1994)::Drama\n12::Toy Story::Comedy\n13::\nhalf\n".encode("latin-1")
    )
    assert read_titles(file, LIKE_ML1M) == {"1": "Léon (1994)", "12": "Toy Story"}


def test_quoted_csv_with_a_header(tmp_path: Path) -> None:
    file = write(tmp_path / "movies.csv", '\ufeffmovieId,title,genres\n7,"Sabrina, ""new"" (1995)",x\n'.encode())
    settings = TitlesSettings(file="movies.csv", item="movieId")
    assert read_titles(file, settings) == {"7": 'Sabrina, "new" (1995)'}


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert read_titles(Location(tmp_path / "none.csv"), TitlesSettings(file="none.csv")) is None
    with pytest.raises(InputError, match=r"movies\.csv cannot be read .*; set titles\.encoding"):
        read_titles(write(tmp_path / "movies.csv", b"item,title\n1,L\xe9on\n"), TitlesSettings(file="movies.csv"))
    with pytest.raises(InputError, match=r"has no column 'item' \(titles\.item\)"):
        read_titles(write(tmp_path / "movies.csv", b"movie,title\n1,x\n"), TitlesSettings(file="movies.csv"))
    with pytest.raises(InputError, match=r"titles\.fields is 'item'; "):
        TitlesSettings(file="movies.dat", header=False, fields=("item",))


def test_titles_are_by_item_id(tmp_path: Path) -> None:
    catalog = [
        {"item_id": n, "raw_item_id": raw, "num_positive": 1, "num_negative": 0} for n, raw in enumerate("bca", 1)
    ]
    pq.write_table(pa.Table.from_pylist(catalog, schema=ITEMS_SCHEMA), tmp_path / "items.parquet")
    entry = write_titles({"a": "A", "b": "B", "z": "Z"}, Location(tmp_path))
    assert (entry.path, entry.rows) == ("titles.parquet", 2)
    assert pq.read_table(tmp_path / "titles.parquet").to_pylist() == [
        {"item_id": 1, "title": "B"},
        {"item_id": 3, "title": "A"},
    ]


def test_a_title_that_begins_with_a_quote_takes_no_other_title_with_it(tmp_path: Path) -> None:
    names = {f"i{n}": f"Title {n}" for n in range(20)}
    names |= {"i7": '"Heroes', "i9": 'The "Best" of' + " long" * 40_000}
    text = "\n".join(["item\ttitle", *(f"{item}\t{title}" for item, title in names.items())])
    file = write(tmp_path / "items.tsv", text.encode())
    assert read_titles(file, TitlesSettings(file="items.tsv", separator="\t")) == names


def test_a_quoted_title_may_have_several_lines_and_without_quotes_they_are_letters(tmp_path: Path) -> None:
    quoted = {"i1": "One", "i3": 'Say "yes",\nplease', "i4": "a, b"}
    lines = [f'{item},"{title.replace(chr(34), chr(34) * 2)}"' for item, title in quoted.items()]
    file = write(tmp_path / "items.csv", "\n".join(["item,title", *lines]).encode())
    assert read_titles(file, TitlesSettings(file="items.csv")) == quoted
    file = write(tmp_path / "items.csv", b'item,title\ni1,"One"\n')
    assert read_titles(file, TitlesSettings(file="items.csv", quote="")) == {"i1": '"One"'}


@pytest.mark.parametrize("byte", [b"\x85", b"\x1c", b"\x0b", b"\xa0"])
def test_a_title_ends_at_a_line_feed_alone(tmp_path: Path, byte: bytes) -> None:
    file = write(tmp_path / "items.csv", b"item,title\r\ni3,Wait" + byte + b" What\r\n")
    found = read_titles(file, TitlesSettings(file="items.csv", encoding="latin-1"))
    assert found == {"i3": f"Wait{byte.decode('latin-1')} What"}
