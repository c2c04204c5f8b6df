"""Runs a program and measures it: seconds, the memory of its processes, and the size of its directories."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.5
"""Seconds between two samples. A shorter peak can be missed."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Usage:
    seconds: float = 0
    memory: float = 0
    """peak of the process tree, in GB"""
    disk: float = 0
    """peak of all directories together, in GB"""


def watched(
    line: Sequence[str], work: Path, log: Path, *, directories: Sequence[Path] = (), variables: Mapping[str, str] = {}
) -> Usage:
    """Runs a command of this repository in `work`. If it fails, its log's end is the message of SystemExit.

    log: a file for what it prints; directories: they may come into being later; variables: of its environment.
    """
    usage, stop, started = Usage(), threading.Event(), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(variables)
    with log.open("wb") as output:
        process = subprocess.Popen(line, cwd=work, stdout=output, stderr=output, env=environment)
        watcher = threading.Thread(target=_watch, args=(process.pid, directories, usage, stop))
        watcher.start()
        code = process.wait()
        usage.seconds = time.monotonic() - started
        stop.set()
        watcher.join()
    if code:
        raise SystemExit(f"{' '.join(line)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return usage


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory, or 0 if there is none. Files may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += Path(place, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _watch(pid: int, directories: Sequence[Path], usage: Usage, stop: threading.Event) -> None:
    while not stop.wait(INTERVAL):
        usage.memory = max(usage.memory, memory_of(pid) / 1e9)
        usage.disk = max(usage.disk, sum(map(size_of, directories)) / 1e9)


def memory_of(pid: int) -> int:
    """Bytes of a process and its descendants."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total
