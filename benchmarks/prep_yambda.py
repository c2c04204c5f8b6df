"""python -m benchmarks.prep_yambda: times the preparation of logs like Yambda's (benchmarks/yambda_like.py).

Peak disk is that of Spark's scratch files and of the data set that is
written; the log itself is not counted. Compare figures within one run only.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.watched import Usage, size_of, watched
from benchmarks.yambda_like import FILE, write_yambda_like
from pnfrec_dist.files.tables import text_table

HEAD = [
    "rows",
    "users",
    "tracks",
    "seconds",
    "rows/s",
    "us/row",
    "of the smallest",
    "peak GB",
    "peak disk GB",
    "log GB",
    "prepared GB",
]
CONF = f"""
source: {{format: parquet, files: {FILE}, user: uid, item: item_id, timestamp: timestamp, time_format: number}}
feedback:
  positive: "event_type = 'like' or played_ratio_pct >= 50"
  negative: "event_type = 'dislike'"
  undone: ["event_type = 'like'", "event_type = 'dislike'"]
  undone_by: ["event_type = 'unlike'", "event_type = 'undislike'"]
clean: {{duplicates: keep_last}}
"""


def measure(work: Path, rows: int, users: int, tracks: int) -> tuple[Usage, float, float]:
    """(usage, GB of the log, GB of the prepared data set) of the preparation of one log in an empty directory."""
    raw, scratch, out = work / "raw", work / "spark", work / "out"
    write_yambda_like(raw / FILE, rows, users, tracks)
    scratch.mkdir()
    (work / "conf/dataset").mkdir(parents=True)
    (work / "conf/dataset/bench.yaml").write_text(CONF)
    line = [sys.executable, "-m", "spark_jobs", "--dataset", "bench", "--raw", "raw", "--data-dir", str(out)]
    variables = {"SPARK_LOCAL_DIRS": str(scratch)}
    usage = watched(line, work, work / "job.log", directories=[scratch, out], variables=variables)
    return usage, size_of(raw) / 1e9, size_of(out) / 1e9


def main() -> None:
    """Prints the table of all sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prep_yambda", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=[5, 50], help="rows of each log")
    parser.add_argument("--rows-per-user", type=int, default=100)
    parser.add_argument("--rows-per-track", type=int, default=50)
    parser.add_argument("--logs", type=Path, help="directory that keeps what each preparation prints")
    options = parser.parse_args()
    memory = psutil.virtual_memory().total / 1e9
    print(f"{psutil.cpu_count(logical=False)} cores, {memory:.0f} GB; one run of each size", flush=True)
    table, smallest = [], 0.0
    for millions in sorted(options.millions):
        rows = int(millions * 1e6)
        with tempfile.TemporaryDirectory(prefix="pnfrec-bench-") as work:
            users, tracks = max(rows // options.rows_per_user, 1), max(rows // options.rows_per_track, 1)
            usage, log, prepared = measure(Path(work), rows, users, tracks)
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(work) / "job.log", options.logs / f"{millions:g}M.log")
        each = usage.seconds / rows * 1e6
        smallest = smallest or each
        speed, share = f"{rows / usage.seconds:,.0f}", f"{each / smallest:.2f}"
        sizes = [f"{usage.memory:.1f}", *(f"{size:.2f}" for size in (usage.disk, log, prepared))]
        counts = [f"{millions:g}M", f"{users:,}", f"{tracks:,}"]
        table.append([*counts, f"{usage.seconds:.1f}", speed, f"{each:.2f}", share, *sizes])
        print(f"{millions:g}M rows: {usage.seconds:.1f} s", file=sys.stderr)
    print(text_table(HEAD, table, ">" * len(HEAD)))


if __name__ == "__main__":
    main()
