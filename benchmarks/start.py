"""python -m benchmarks.start [--times 3] [--data DIR]: how long commands take to start, beside Ray alone.

Writes docs/start-up.md. All times are medians of one run; compare them within one run only. Also trains with one
worker in the command's process and under Ray, and compares both byte by byte.
"""

import argparse
import hashlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pnfrec_dist.files.tables import markdown_table

STAGE = """model: pnfrec
search: grid
scheduler: none
space:
  loss.alpha: [0.1, 0.2, 0.3, 0.4, 0.5]
"""
FIRST_EPOCH = r"^epoch +1/1 .* ([\d.]+) s( |$)"
"""The line that is printed at the end of the first epoch, with its seconds."""
RAY_ALONE = """
import os, time
here = os.getcwd()
started = time.monotonic()
def lap(name):
    print(name, round(time.monotonic() - started, 2), flush=True)
import torch, ray, ray.train
from ray.train.torch import TorchTrainer
lap("imports")
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
lap("init")
def loop():
    with open(here + "/loop", "w") as file:
        file.write(str(time.time()))
offset = time.time() - time.monotonic()
TorchTrainer(loop, scaling_config=ray.train.ScalingConfig(num_workers=2),
             run_config=ray.train.RunConfig(storage_path=here)).fit()
print("loop", round(float(open(here + "/loop").read()) - offset - started, 2), flush=True)
"""


@dataclass(frozen=True)
class Place:
    """Where everything is run."""

    directory: Path
    data: Path
    """a prepared data set"""

    @property
    def flags(self) -> list[str]:
        return ["--dataset", self.data.name, "--data-dir", str(self.data.parent), "--epochs", "1"]


def seconds_until(pattern: str, directory: Path, *command: str) -> float:
    """From the start of a command to the first line of its output that matches; it is then left to its end.

    If the pattern has a group, its number of seconds is subtracted.
    """
    found: float | None = None
    started = time.monotonic()
    line = [sys.executable, *command]
    with subprocess.Popen(line, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = []
        for text in process.stdout:
            printed.append(text)
            match = re.search(pattern, text)
            if match and found is None:
                found = time.monotonic() - started - float(match[1] if match.groups() else 0)
    if process.returncode or found is None:
        raise SystemExit(f"{' '.join(command)} failed:\n{''.join(printed[-20:])}")
    return found


def train(place: Place, pattern: str, *flags: str) -> float:
    """A new run each time, for one epoch."""
    own = [*place.flags, "--resume", "never"]
    return seconds_until(pattern, place.directory, "-m", "pnfrec_dist.train", *own, *flags)


def ray_alone(directory: Path) -> dict[str, float]:
    line = [sys.executable, "-c", RAY_ALONE]
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(line, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    pairs = [text.split() for text in done.stdout.splitlines() if re.fullmatch(r"(imports|init|loop) [\d.]+", text)]
    return {name: float(value) for name, value in pairs}


def trial_overheads(place: Place) -> list[float]:
    """Seconds of each trial after the first that are not its epochs."""
    from tune.records import read_record

    directory = place.directory
    (directory / "conf" / "tune").mkdir(parents=True, exist_ok=True)
    (directory / "conf" / "tune" / "start.yaml").write_text(STAGE)
    command = ["-m", "tune", *place.flags, "--stages", "start", "--max-concurrent", "1", "--name", "sweep"]
    done = subprocess.run([sys.executable, *command], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the sweep failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    files = sorted((directory / "runs" / "sweep").rglob("trial.json"), key=lambda file: file.stat().st_mtime)
    overheads = []
    for before, file in itertools.pairwise(files):
        record = read_record(file.parent)
        assert record is not None
        trained = sum(epoch["seconds"] for epoch in record.epochs)
        overheads.append(file.stat().st_mtime - before.stat().st_mtime - trained)
    return overheads


def one_worker_both_ways(place: Place) -> str:
    """Trains two epochs with one worker, in this process and under Ray Train, and compares the checkpoints' bytes."""
    from pnfrec_dist.cluster.session import ray_cluster
    from pnfrec_dist.cluster.single_worker import run_here
    from pnfrec_dist.cluster.trainer import run_training
    from pnfrec_dist.cluster.worker_plan import WorkerOptions, WorkerPlan
    from pnfrec_dist.data.prepared import open_prepared
    from pnfrec_dist.experiments.python_api import train_settings
    from pnfrec_dist.training.events import BestTested, Event
    from pnfrec_dist.training.loop import Hooks

    settings = train_settings(place.data.name, changes={"epochs": 2})
    data, plan = open_prepared(place.data), WorkerPlan(1, False, 1.0)
    tests: dict[str, Any] = {}

    def keep(way: str) -> Callable[[Event], None]:
        def see(event: Event) -> None:
            if isinstance(event, BestTested):
                tests[way] = event.metrics

        return see

    runs = {way: place.directory / "both" / way for way in ("here", "ray")}
    for run in runs.values():
        run.mkdir(parents=True)
    run_here(settings, plan, data, runs["here"], Hooks(keep("here"), lambda: False, lambda share: None))
    with ray_cluster(WorkerOptions(num_workers=1)):
        run_training(settings, plan, data.directory, runs["ray"], keep("ray"), threading.Event())
    sums = {way: checksums(run / "checkpoints") for way, run in runs.items()}
    is_same = sums["here"] == sums["ray"] and tests["here"] == tests["ray"]
    are = "equal" if is_same else "DIFFERENT"
    return f"the {len(sums['here'])} files of tensors in the checkpoints are {are}, and so are the test metrics"


def checksums(checkpoints: Path) -> dict[str, str]:
    """Of the tensors; the JSON files beside them hold times."""
    files = sorted(checkpoints.rglob("*.safetensors"))
    return {str(file.relative_to(checkpoints)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def measured(place: Place, times: int) -> dict[str, list[float]]:
    """Row -> seconds of each repetition, all rows in turn."""
    found: dict[str, list[float]] = {}
    for number in range(times):
        alone = ray_alone(place.directory)
        rows = {
            "first line": train(place, ".", "--num-workers", "1", "--dry-run"),
            "`--dry-run`, its end": train(place, "^dry run", "--dry-run"),
            "one worker: begin of the first step": train(place, FIRST_EPOCH, "--num-workers", "1"),
            "two workers: begin of the first step": train(place, FIRST_EPOCH, "--num-workers", "2"),
            "Ray alone: imports of torch, Ray and Ray Train": alone["imports"],
            "Ray alone: `ray.init`": alone["init"] - alone["imports"],
            "Ray alone: from `fit` to the loop of a `TorchTrainer` with 2 workers": alone["loop"] - alone["init"],
            "Ray alone: all three": alone["loop"],
        }
        for name, value in rows.items():
            found.setdefault(name, []).append(value)
        print(f"[{number + 1}/{times}]", {name: round(value, 1) for name, value in rows.items()}, flush=True)
    return found


def page(place: Place, rows: dict[str, list[float]], overheads: list[float], both: str) -> str:
    lines = [
        [name, f"{statistics.median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}"]
        for name, values in {**rows, "sweep: a trial after the first, beyond its epochs": overheads}.items()
    ]
    opening = (
        f"# Start-up\n\n`make bench-start` writes this page. {os.cpu_count()} cores, data set {place.data.name}, "
        f"{len(next(iter(rows.values())))} runs of each row in turn. The start of\nthe first step is computed: the "
        "time at which the epoch's line appears, minus the epoch's duration."
    )
    table = markdown_table(["from the start of the command", "median, s", "range, s"], lines)
    both = textwrap.fill(f"One worker in the command's process and one worker under Ray: {both}.", 100)
    return f"{opening}\n\n{table}\n\n{both}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="repetitions of each row (default: 3)")
    parser.add_argument("--data", type=Path, help="a prepared data set; default: the built-in one is prepared first")
    parser.add_argument("--out", type=Path, default=Path("docs/start-up.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary), (options.data or Path(temporary) / "data" / "prepared" / "synthetic").resolve())
        if options.data is None:
            prepare = [sys.executable, "-m", "spark_jobs", "--dataset", "synthetic"]
            subprocess.run(prepare, cwd=place.directory, stdout=subprocess.DEVNULL, check=True)
        rows = measured(place, options.times)
        text = page(place, rows, trial_overheads(place), one_worker_both_ways(place))
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
