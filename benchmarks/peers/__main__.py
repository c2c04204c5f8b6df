"""python -m benchmarks.peers: trains RecTools' and RePlay's models beside this library's, and prints the tables.

The peers are installed in environments of their own and get the same users, histories and catalog. Parts: speed (epochs
and lists on --data), catalogs (epochs over made data of 20,000 to 1 M items), quality (both evaluations of each model),
metrics (against RePlay's own). --work keeps everything, and the same command continues. On two cores, speed takes half
an hour, catalogs one hour, quality several hours.
"""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.machine import processor
from benchmarks.peers import page, speed
from benchmarks.peers.environments import HERE, PEERS, Environment, environment
from benchmarks.peers.exchange import Task
from benchmarks.peers.metric_cases import differences
from benchmarks.peers.quality import of_own, of_peer
from benchmarks.peers.tasks import export, run
from pnfrec_dist.cli import run_command
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.evaluation.metrics import POINTS
from pnfrec_dist.experiments.comparison import Comparison, Recorded
from pnfrec_dist.experiments.points_report import points_parts
from pnfrec_dist.files.atomic import write_json, write_text
from pnfrec_dist.files.locations import Location

PARTS = ("speed", "catalogs", "quality", "metrics")
MODELS = ["sasrec_p", "pnfrec", "pnfrec_plus"]


def main(args: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/prepared/ml1m"), help="prepared data (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="environments and results (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"of this library (default: {' '.join(MODELS)})")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of quality: 1, 2, ... (%(default)s)")
    parser.add_argument("--at-a-time", type=int, default=1, help="trainings of quality at a time (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="most epochs of a training of quality (%(default)s)")
    parser.add_argument("--hidden-size", type=int, default=64, help="of quality (%(default)s)")
    parser.add_argument(
        "--widths", nargs="+", type=int, default=speed.WIDTHS, help="hidden sizes of speed (%(default)s)"
    )
    parser.add_argument("--cases", type=int, default=1_000, help="random cases of metrics (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write the tables and notes.md into this file")
    arguments = parser.parse_args(args)
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    environments = {peer: environment(peer, arguments.work / "environments") for peer in arguments.peers}
    installed = {peer: one for peer, one in environments.items() if not one.problem}
    bench = speed.Bench(arguments.work, len(os.sched_getaffinity(0)), installed)
    data = open_prepared(Location(arguments.data.absolute()))
    page = "\n\n".join(
        ["# Beside RecTools and RePlay", introduction(environments, data), *sections(arguments, bench, data)]
    )
    print(page)
    if arguments.out:
        write_text(arguments.out, f"{page}\n\n{(HERE / 'notes.md').read_text(encoding='utf-8')}")
    return 0


def introduction(environments: dict[str, Environment], data: PreparedData) -> str:
    said = [
        f"torch {torch.__version__}",
        *(f"{one.name} {one.versions}" for one in environments.values() if one.versions),
    ]
    lines = [f"{processor()}, {len(os.sched_getaffinity(0))} cores, {datetime.now(UTC):%Y-%m-%d}; {'; '.join(said)}."]
    lines += [f"{one.name} was skipped: {one.problem}" for one in environments.values() if one.problem]
    return "\n".join([*lines, f"Data: {data.manifest.dataset}, {len(data.train('positive')):,} training users."])


def sections(arguments: argparse.Namespace, bench: speed.Bench, data: PreparedData) -> list[str]:
    found: list[str] = []
    if "speed" in arguments.parts:
        rows = speed.real_rows(bench, data, arguments.widths)
        write_json(bench.work / "speed.json", [asdict(row) for row in rows])
        found += ["## Training", page.speed_table(rows), page.ratio_table(rows)]
        found += ["## Lists for all training users", page.lists_table(rows)]
    if "catalogs" in arguments.parts:
        rows = speed.made_rows(bench)
        write_json(bench.work / "catalogs.json", [asdict(row) for row in rows])
        found += ["## Large catalogs", page.speed_table(rows), page.ratio_table(rows)]
    if "quality" in arguments.parts:
        found += quality(arguments, bench, data)
    if "metrics" in arguments.parts and "replay" in bench.peers:
        metrics = differences(bench.peers["replay"], bench.work, arguments.cases)
        found += [f"## Metrics beside RePlay's, {arguments.cases:,} random cases", page.metrics_table(metrics)]
    return found


def quality(arguments: argparse.Namespace, bench: speed.Bench, data: PreparedData) -> list[str]:
    """Both evaluations, and differences from this library's `sasrec_p` and from the best recipe of each peer."""
    exported = bench.work / "exported" / data.directory.name
    export(data, exported)
    runs: dict[str, list[Recorded]] = {}
    for one in of_own(data, arguments):
        runs.setdefault(one.model, []).append(one)
    tasks = peer_tasks(arguments, bench, exported, data.num_items)
    limit_gb = bench.limit_gb / arguments.at_a_time
    with ThreadPoolExecutor(arguments.at_a_time) as pool:
        found = list(pool.map(lambda one: run(one[0], bench.peers[one[0]], one[1], limit_gb), tasks))
    for (peer, task), result in zip(tasks, found, strict=True):
        if "problem" not in result:
            name = f"{bench.peers[peer].name} {task.recipe}"
            runs.setdefault(name, []).append(of_peer(name, data, task))
    parts = points_parts(Comparison(runs))
    for peer in bench.peers.values():
        recipes = [name for name in runs if name.startswith(peer.name)]
        best = max(recipes, key=lambda name: mean_ndcg(runs[name]), default="")
        if best:
            _, *others = points_parts(Comparison(runs, reference=best))
            start = others.index(f"### Difference from `{best}`, on both")
            parts += others[start : start + 3]
    return parts


def peer_tasks(
    arguments: argparse.Namespace, bench: speed.Bench, exported: Path, num_items: int
) -> list[tuple[str, Task]]:
    """(peer, training), of each recipe and seed."""
    threads, width, found = max(1, bench.threads // arguments.at_a_time), arguments.hidden_size, []
    for peer in bench.peers:
        for recipe in speed.RECIPES[peer]:
            for seed in range(1, arguments.seeds + 1):
                out = bench.work / "quality" / f"{peer}-{recipe}-{width}-{seed}"
                task = Task(str(exported), str(out), num_items, recipe, width, arguments.epochs)
                found.append((peer, replace(task, seed=seed, threads=threads, patience=10, with_lists=True)))
    return found


def mean_ndcg(runs: list[Recorded]) -> float:
    return sum(one.result.test[f"{POINTS}ndcg_p_at_10"] for one in runs) / len(runs)


if __name__ == "__main__":
    run_command(main)
