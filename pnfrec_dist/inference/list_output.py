"""The files of recommend: written part by part into a draft, moved into place when complete, resumed after a kill.

recs/part-00000.parquet, ...    list_maker.LIST_SCHEMA, one file for each part of the data set's users
recs/_manifest.json             how the lists were made, and the size, rows and sha256 of every file
.recs.making/                   the draft: request.json, parts, and a note for each complete part
.recs.old/                      the old lists, for the moment in which both exist
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import move_in, old_of, put_back, replaced, write_json, writing
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.files.locks import held

MANIFEST, REQUEST, KIND = "_manifest.json", "request.json", "recommendations"
"""Readers of a Parquet directory ignore names that begin with _."""
NOTES = "part-*.json"
OWN = r"_manifest\.json|\._manifest\.json\.writing|request\.json|\.?part-\d+\.(parquet|json)(\.\d+)?"
"""Pattern of the names of these files and their drafts."""


@dataclass(frozen=True)
class Part:
    """A complete part."""

    path: str
    users: int
    popular: int
    """users whose list has popular items"""
    rows: int
    bytes: int
    sha256: str


class ListFiles:
    """The files of one directory of lists, while a command makes them."""

    def __init__(self, directory: Path, request: dict[str, Any]) -> None:
        """request: everything that the lists depend on; parts of another request are deleted.

        Raises InputError if `directory` contains anything but lists.
        """
        self.directory, self.request = directory, request
        self.making = directory.with_name(f".{directory.name}.making")
        for place in (directory, self.making, old_of(directory)):
            if place.exists() and (found := _foreign(place)):
                raise InputError(f"{found} exists and is not from earlier lists; move it away, or name another --out")

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[int, Part]]:
        """The parts that are already made, by number.

        Raises InputError if another command is making these lists, or if the directory cannot be written.
        """
        lock = self.directory.with_name(f".{self.directory.name}.lock")
        with contextlib.ExitStack() as stack:
            with _writing(self.directory.parent):
                self.directory.parent.mkdir(parents=True, exist_ok=True)
                is_ours = stack.enter_context(held(lock, remove=True))
            if not is_ours:
                way_out = "wait for it, or name another --out"
                raise InputError(f"{self.directory} is being made by another command; {way_out}")
            try:
                with _writing(self.directory.parent):
                    put_back(self.directory)
                    done = self._taken_up()
                yield done
            finally:
                if not list(self.making.glob(NOTES)):  # nothing to resume from
                    shutil.rmtree(self.making, ignore_errors=True)

    def publish(self, parts: Iterable[Part], about: dict[str, Any]) -> None:
        """Moves the lists into place. After a kill between the two moves, the next start puts the old lists back.

        Raises InputError if they cannot be written.
        """
        with _writing(self.directory.parent):
            self._publish(parts, about)

    def _publish(self, parts: Iterable[Part], about: dict[str, Any]) -> None:
        content = {"kind": KIND, **about, "files": [asdict(part) for part in parts]}
        for left in [*self.making.glob("*.json"), *self.making.glob(".part-*")]:
            left.unlink()
        write_json(self.making / MANIFEST, content, indent=1)
        move_in(self.making, self.directory)

    def _taken_up(self) -> dict[int, Part]:
        request = self.making / REQUEST
        wanted = json.dumps(self.request, sort_keys=True, indent=1) + "\n"
        if not request.is_file() or request.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(self.making, ignore_errors=True)
            self.making.mkdir()
            request.write_text(wanted, encoding="utf-8")
            return {}
        found = {}
        for note in self.making.glob(NOTES):
            part = Part(**json.loads(note.read_text(encoding="utf-8")))
            file = self.making / part.path
            if file.is_file() and sha256_of(file) == part.sha256:
                found[int(note.stem.removeprefix("part-"))] = part
        return found


def _writing(directory: Path) -> contextlib.AbstractContextManager[None]:
    return writing(f"below {directory}", "name another --out, or make room")


def write_part(making: Path, number: int, lists: pa.Table, users: int, popular: int) -> Part:
    """Writes one part and, once it is on the disk, its note. Raises InputError if this fails."""
    file = making / f"part-{number:05d}.parquet"
    note = file.with_suffix(".json")
    writer = os.getpid()  # a task that seemed lost may still write while its replacement runs
    with _writing(making):
        with replaced(file, writer) as draft:
            pq.write_table(lists, draft, compression="zstd")
        part = Part(file.name, users, popular, len(lists), file.stat().st_size, sha256_of(file))
        write_json(note, asdict(part), writer=writer)
    return part


def _foreign(place: Path) -> Path | None:
    """A path in a directory of lists or its draft that does not belong there; the directory itself if nothing does."""
    if not place.is_dir():
        return place
    names = sorted(path.name for path in place.iterdir())
    others = [name for name in names if not re.fullmatch(OWN, name)]
    if others and len(others) == len(names):
        return place
    return place / others[0] if others else None
