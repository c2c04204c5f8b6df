"""Local and remote files: a path on this machine, or a URI that pyarrow reads (file, s3, s3a, gs, hdfs)."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pnfrec_dist.errors import InputError, first_line

CHUNK = 4 << 20


class Location:
    """A file or directory. Only its text is stored, so it can be sent to processes; the file system opens on use."""

    def __init__(self, place: "str | Path | Location") -> None:
        """place: a path (relative to the working directory), or scheme://..."""
        text = str(place)
        if not text.strip():
            raise InputError("a path is empty; give a directory, or leave out the setting")
        if text.startswith("file:"):
            if not text.startswith("file:/"):
                raise InputError(f"{text!r} is not a file URI; write file:///directory, or only the path")
            text = fs.FileSystem.from_uri("file://" + "/" + text.removeprefix("file:").lstrip("/"))[1]
        self.is_local = "://" not in text
        self.uri = str(Path(text).expanduser().absolute()) if self.is_local else text.rstrip("/")
        self._shown = text if self.is_local else self.uri

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self._shown.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Location({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        return Location(self.uri.rpartition("/")[0] or "/")

    @property
    def path(self) -> Path:
        """The path on this machine; only for local files."""
        assert self.is_local, self.uri
        return Path(self.uri)

    def resolved(self) -> "Location":
        """With symbolic links resolved."""
        return Location(self.path.resolve()) if self.is_local else self

    @property
    def renames(self) -> bool:
        """Whether directories can be renamed in one move; object stores cannot."""
        return self.is_local or self.uri.startswith(("hdfs://", "viewfs://"))

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        try:
            return fs.FileSystem.from_uri(self.uri.replace("s3a://", "s3://", 1))
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise InputError(
                f"cannot open {self.uri} ({first_line(error)}); see docs/data.md for other storage"
            ) from None

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._opened[0]

    @property
    def fs_path(self) -> str:
        return self._opened[1]

    def info(self) -> fs.FileInfo:
        return self.filesystem.get_file_info([self.fs_path])[0]

    def exists(self) -> bool:
        return self.info().type != fs.FileType.NotFound

    def is_file(self) -> bool:
        return self.info().type == fs.FileType.File

    def is_dir(self) -> bool:
        return self.info().type == fs.FileType.Directory

    def size(self) -> int:
        return self.info().size

    def entries(self, *, recursive: bool = True) -> dict[str, fs.FileInfo]:
        """Files and directories below this one, by relative path, sorted by name."""
        selector = fs.FileSelector(self.fs_path, recursive=recursive, allow_not_found=True)
        found = {
            info.path.removeprefix(self.fs_path).lstrip("/"): info for info in self.filesystem.get_file_info(selector)
        }
        return dict(sorted(found.items()))

    def files(self, *, recursive: bool = True) -> dict[str, int]:
        """Relative path -> size, for the files below this directory."""
        found = self.entries(recursive=recursive)
        return {path: info.size for path, info in found.items() if info.type == fs.FileType.File}

    def open(self) -> pa.NativeFile:
        """Opens the file for random access."""
        return self.filesystem.open_input_file(self.fs_path)

    def read_bytes(self) -> bytes:
        with self.filesystem.open_input_stream(self.fs_path, compression=None) as stream:
            return stream.read()

    def write_bytes(self, content: bytes) -> None:
        with self.filesystem.open_output_stream(self.fs_path, compression=None) as stream:
            stream.write(content)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.fs_path, compression=None) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def make_directory(self) -> None:
        self.filesystem.create_dir(self.fs_path, recursive=True)

    def rename(self, to: "Location") -> None:
        """Moves in one step, if `renames`."""
        if self.is_local:
            self.path.rename(to.path)
        else:
            self.filesystem.move(self.fs_path, to.fs_path)

    def copy_file(self, to: "Location") -> None:
        self.filesystem.copy_file(self.fs_path, to.fs_path)

    def delete(self) -> None:
        """Removes the file or directory; no error if it does not exist."""
        if self.is_local and self.path.is_symlink():
            self.path.unlink()
        elif self.is_local and self.path.is_dir():
            shutil.rmtree(self.path)
        elif (kind := self.info().type) == fs.FileType.Directory:
            self.filesystem.delete_dir(self.fs_path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(self.fs_path)

    def sync(self) -> None:
        """Returns when the file, or the directory's entries, are on the disk; remote files are stored when closed."""
        if self.is_local:
            sync_to_disk(self.path)


@contextmanager
def reading(place: object, way_out: str) -> Iterator[None]:
    """Turns an OSError, or an error about the content, into a one-line InputError that says what could not be read.

    An InputError is passed on unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or first_line(error, with_class=True)
        raise InputError(f"{place} cannot be read ({reason}); {way_out}") from error


def sync_to_disk(path: Path) -> None:
    """Returns when the file, or the directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
