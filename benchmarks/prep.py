"""python -m benchmarks.prep: times the preparation of synthetic logs beside pandas and a plain Spark job.

All three follow the same protocol (equal rows collapse, T, support of items and users before T, cold users and
items, min positives, sequences) on the same cores and memory, each in processes of its own. Seconds are wall time of
the whole program; peak memory is that of its process tree. Compare figures within one run only.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pc

from benchmarks.watched import Usage, watched
from pnfrec_dist.files.tables import text_table

ITEMS = 50_000
PROGRAMS = {"job": "this job", "naive": "plain Spark job", "pandas": "pandas"}
"""Name on the command line -> name in the table."""
HEAD = ["rows", "program", "seconds", "rows/s", "us/row", "peak GB", "of the plain Spark job"]
CONF = "source: {files: log.csv}\nfeedback: {threshold: 3.5}\n"


def write_log(path: Path, rows: int) -> None:
    """A log of rows / 100 users, sorted by user and time. Popularity and activity are as skewed as in real logs."""
    rng = np.random.default_rng(0)
    users = max(rows // 100, 1)
    chosen = []
    for count, spread in ((users, 1.2), (ITEMS, 1.8)):
        weight = np.cumsum(rng.lognormal(0, spread, count))
        chosen.append(np.searchsorted(weight / weight[-1], rng.random(rows)).clip(max=count - 1))
    user, item = chosen
    joined = rng.integers(1_400_000_000, 1_550_000_000, users)
    moment = joined[user] + rng.exponential(8e6, rows).astype(np.int64)
    order = np.lexsort((moment, user))
    table = pa.table(
        {
            "user": user[order] + 1,
            "item": item[order] + 1,
            "rating": rng.integers(1, 11, rows)[order] / 2,
            "timestamp": moment[order],
        }
    )
    path.parent.mkdir(parents=True)
    pc.write_csv(table, path, pc.WriteOptions(quoting_style="none"))


def measure(program: str, work: Path) -> Usage:
    """The usage of one program over work/raw/log.csv."""
    out = work / f"out-{program}"
    if program == "job":
        line = [sys.executable, "-m", "spark_jobs", "--dataset", "bench", "--raw", "raw", "--data-dir", str(out)]
    else:
        line = [sys.executable, "-m", f"benchmarks.prep_{program}", "raw/log.csv", str(out)]
    usage = watched(line, work, work / f"{program}.log")
    shutil.rmtree(out)
    return usage


def main() -> None:
    """Prints the table of all sizes and programs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prep", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 5, 20], help="rows of each log")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each program; the table shows medians")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options = parser.parse_args()
    memory = psutil.virtual_memory().total / 1e9
    runs_of_each = "one run" if options.repeats == 1 else f"medians of {options.repeats} runs"
    print(f"{psutil.cpu_count(logical=False)} cores, {memory:.0f} GB; {runs_of_each} of each program", flush=True)
    rows = [row for millions in options.millions for row in _rows(millions, options.programs, options.repeats)]
    print(text_table(HEAD, rows, "><>>>>>"))


def _rows(millions: float, programs: list[str], repeats: int) -> list[list[str]]:
    """The rows of the table for one size: one of each program."""
    rows, found = int(millions * 1e6), []
    with tempfile.TemporaryDirectory(prefix="pnfrec-bench-") as scratch:
        work = Path(scratch)
        write_log(work / "raw/log.csv", rows)
        (work / "conf/dataset").mkdir(parents=True)
        (work / "conf/dataset/bench.yaml").write_text(CONF)
        runs = {program: [] for program in programs}
        for _ in range(repeats):
            for program in programs:
                runs[program].append(measure(program, work))
                print(f"{millions:g}M rows, {PROGRAMS[program]}: {runs[program][-1].seconds:.1f} s", file=sys.stderr)
    seconds = {program: statistics.median(run.seconds for run in runs[program]) for program in programs}
    for program, took in seconds.items():
        peak = statistics.median(run.memory for run in runs[program])
        ratio = f"{took / seconds['naive']:.2f}" if "naive" in seconds else ""
        speed, share = f"{rows / took:,.0f}", f"{took / rows * 1e6:.2f}"
        found.append([f"{millions:g}M", PROGRAMS[program], f"{took:.1f}", speed, share, f"{peak:.1f}", ratio])
    return found


if __name__ == "__main__":
    main()
