"""Builds a data set next to its place and moves it there when complete: a killed job leaves the old one or none."""

import contextlib
import os
import socket
from collections.abc import Iterator

import psutil

from pnfrec_dist.data.schema import SUCCESS_NAME, Manifest, read_manifest, verify_files
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import move_back, move_over, writing
from pnfrec_dist.files.locations import Location


@contextlib.contextmanager
def build_directory(final: Location) -> Iterator[Location]:
    """A sibling of `final` to build in. It is deleted after an error; publish() puts it in the place of `final`."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    with writing(f"below {final.parent}", "choose another --data-dir"):
        final.parent.make_directory()
        clear_leftovers(final)
        building = final.parent / f".{final.name}.building-{owner}"
        building.delete()
        building.make_directory()
    try:
        yield building
    finally:
        with contextlib.suppress(OSError):  # tasks may still be writing; the next build deletes the rest
            building.delete()


def clear_leftovers(final: Location) -> None:
    """Deletes what killed builds of `final` left. If one had just renamed the old data set, this puts it back."""
    for name in final.parent.entries(recursive=False):
        for kind in ("building", "old"):
            prefix = f".{final.name}.{kind}-"
            if not name.startswith(prefix) or _is_alive(name.removeprefix(prefix)):
                continue
            leftover = final.parent / name
            if kind == "old" and (final.is_dir() or whole_manifest(leftover) is not None):
                move_back(final, leftover)
            leftover.delete()


def _is_alive(owner: str) -> bool:
    """Whether the process named by a directory (host-pid) may still run."""
    host, _, process = owner.rpartition("-")
    return host != socket.gethostname() or (process.isdigit() and psutil.pid_exists(int(process)))


def publish(building: Location, final: Location) -> None:
    """Puts a complete `building` in the place of `final`.

    If directories can be renamed, the old data set is renamed and the new one moved in. In an object store, the old
    _SUCCESS is deleted first and the new one is written last; in between, readers find no data set.
    """
    if final.renames:
        if final.is_local:
            for name in building.entries():
                (building / name).sync()
        old = final.parent / building.name.replace(".building-", ".old-")
        old.delete()
        move_over(building, final, old)
        return
    (final / SUCCESS_NAME).delete()
    final.delete()
    for name in sorted(building.files(), key=lambda name: name == SUCCESS_NAME):
        (building / name).copy_file(final / name)
    building.delete()


def whole_manifest(directory: Location) -> Manifest | None:
    """The manifest of a data set, or None if a file does not match it."""
    try:
        manifest = read_manifest(directory)
        verify_files(directory, manifest)
    except InputError:
        return None
    return manifest
