"""Training speed, memory, and lists for all users: this library's commands and the peers on the same data."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.peers.environments import Environment
from benchmarks.peers.exchange import Task
from benchmarks.peers.tasks import export, export_made, run
from benchmarks.prepared_like import write_prepared_like
from benchmarks.watched import watched
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.files.locations import Location
from pnfrec_dist.training.result import read_result

WIDTHS = (64, 231)
CATALOGS = (20_000, 100_000, 1_000_000)
MADE_WIDTH, MADE_USERS, MADE_STEPS = 64, 2_000, 4
"""Of the made data: hidden size, training users, and steps of an epoch, which read these users once."""
EPOCHS, MADE_EPOCHS = 4, 2
"""The first epoch is not counted."""
RECIPES = {"rectools": ("softmax", "esasrec"), "replay": ("ce", "sce")}
PRECISIONS = ("32-true", "bf16-mixed")
MODEL = "sasrec_p"


@dataclass(frozen=True)
class Row:
    """One measurement."""

    system: str
    """recipe and peer, or this library's model"""
    precision: str
    num_items: int
    hidden_size: int
    users_per_s: float = 0.0
    """of training: median over epochs after the first"""
    peak_gb: float = 0.0
    """of all processes"""
    lists_per_s: float = 0.0
    """users/s of lists for all training users; 0: not measured"""
    problem: str = ""


@dataclass(frozen=True)
class Bench:
    """Where measurements run."""

    work: Path
    threads: int
    peers: dict[str, Environment]

    @property
    def limit_gb(self) -> float:
        """A peer is ended when it has more memory: 90 % of what is free."""
        return psutil.virtual_memory().available * 0.9 / 1e9


def real_rows(bench: Bench, data: PreparedData, widths: Sequence[int] = WIDTHS) -> list[Row]:
    """Epochs and lists on a prepared data set."""
    exported = bench.work / "exported" / data.directory.name
    export(data, exported)
    rows = []
    for width in widths:
        rows += [own_row(bench, data, width, workers, EPOCHS, "auto", lists=True) for workers in (1, bench.threads)]
        rows.append(own_row(bench, data, width, bench.threads, EPOCHS, "float32"))
        task = Task(str(exported), "", data.num_items, "", width, EPOCHS, with_user_lists=True, threads=bench.threads)
        rows += peer_rows(bench, task, len(data.train("positive")), PRECISIONS)
    return rows


def made_rows(bench: Bench) -> list[Row]:
    """Epochs on made data with large catalogs."""
    rows = []
    for num_items in CATALOGS:
        directory = bench.work / "made" / f"items{num_items}"
        if not (directory / "manifest.json").is_file():
            write_prepared_like(directory, MADE_USERS, num_items, train_users=MADE_USERS)
        data, exported = open_prepared(Location(directory)), bench.work / "exported" / directory.name
        export_made(data, exported)
        rows.append(own_row(bench, data, MADE_WIDTH, 1, MADE_EPOCHS, "auto"))
        rows.append(own_row(bench, data, MADE_WIDTH, bench.threads, MADE_EPOCHS, "auto"))
        task = Task(str(exported), "", num_items, "", MADE_WIDTH, MADE_EPOCHS, steps=MADE_STEPS, threads=bench.threads)
        rows += peer_rows(bench, task, MADE_USERS, PRECISIONS[:1])
    return rows


def peer_rows(bench: Bench, task: Task, users: int, precisions: tuple[str, ...]) -> list[Row]:
    """Of each peer that is installed, each recipe."""
    rows = []
    for peer, environment in bench.peers.items():
        for recipe in RECIPES[peer]:
            for precision in precisions:
                name = f"{peer}-{recipe}-{task.num_items}-{task.hidden_size}-{precision}"
                one = replace(task, recipe=recipe, precision=precision, out=str(bench.work / "speed" / name))
                row = Row(f"{environment.name} {recipe}", precision, task.num_items, task.hidden_size)
                found = run(peer, environment, one, bench.limit_gb)
                if "problem" in found:
                    rows.append(replace(row, problem=found["problem"].splitlines()[-1]))
                    continue
                lists = users / found["user_lists_seconds"] if found["user_lists_seconds"] else 0.0
                speed = users / statistics.median(found["seconds"][1:])
                rows.append(replace(row, users_per_s=speed, peak_gb=found["peak_gb"], lists_per_s=lists))
    return rows


def own_row(
    bench: Bench, data: PreparedData, width: int, workers: int, epochs: int, precision: str, *, lists: bool = False
) -> Row:
    """The train command, and lists by its model in one process."""
    name = f"own-{data.num_items}-{width}-{workers}-{precision}"
    work, kept = bench.work / "speed" / name, bench.work / "speed" / name / "finished.json"
    if kept.is_file():
        return Row(**json.loads(kept.read_text(encoding="utf-8")))
    work.mkdir(parents=True, exist_ok=True)
    flags = {
        "dataset": data.directory.name,
        "data-dir": data.directory.parent,
        "model": MODEL,
        "epochs": epochs,
        "num-workers": workers,
        "encoder.hidden_size": width,
        "encoder.max_length": Task.max_length,
        "encoder.dropout": Task.dropout,
        "train.batch_size": Task.batch_size,
        "train.precision": precision,
    }
    line = [sys.executable, "-m", "pnfrec_dist.train"]
    line += [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    usage = watched(line, work, work / "train.txt")
    result_path = next(work.glob("runs/*/result"))
    result = read_result(result_path.parent)
    assert result is not None
    users = len(data.train("positive"))
    speed = users / statistics.median(epoch.seconds for epoch in result.epochs[1:])
    row = Row(
        f"{MODEL}, {workers} worker{'s' if workers > 1 else ''}", precision, data.num_items, width, speed, usage.memory
    )
    if lists:
        out, names = work / "lists.json", [str(result_path.parent), str(data.directory.parent)]
        watched([sys.executable, "-m", "benchmarks.peers.own_lists", *names, str(out)], work, work / "lists.txt")
        found = json.loads(out.read_text(encoding="utf-8"))
        row = replace(row, lists_per_s=found["users"] / found["seconds"])
    kept.write_text(json.dumps(row.__dict__, indent=1) + "\n", encoding="utf-8")
    print(f"{name}: {row.users_per_s:,.0f} users/s", flush=True)
    return row
