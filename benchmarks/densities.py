"""python -m benchmarks.densities: compares models on generated data of six densities, and prints a section for each.

Data are generated as the built-in data set is (spark_jobs/synthetic.py), with other sizes. Preparation, trainings and
reports are those of the commands; --work keeps everything, and the same command continues. One seed of both models on
all six takes about half an hour on two cores.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml

from spark_jobs.synthetic import write_ratings

DENSITIES = {
    "dense": {"users": 2_000, "items": 500, "mean_ratings": 100},
    "builtin": {},
    "medium": {"users": 3_000, "items": 1_000, "mean_ratings": 20, "least_ratings": 6},
    "sparse": {"users": 6_000, "items": 2_000, "mean_ratings": 10, "least_ratings": 4},
    "sparser": {"users": 8_000, "items": 4_000, "mean_ratings": 7, "least_ratings": 3},
    "wide": {"users": 4_000, "items": 8_000, "mean_ratings": 30, "least_ratings": 6},
}
"""name -> sizes of generate()"""
MODELS = ("sasrec_p", "pnfrec_plus")
ROOT = Path(__file__).resolve().parents[1]
CONTENT = {
    "source": {"files": "ratings.csv"},
    "titles": {"file": "items.csv"},
    "feedback": {"threshold": 4},
    "filter": {"min_items_per_user": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.densities", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/densities"), help="data and runs (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each model: 1, 2, ... (%(default)s)")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument(
        "--only", nargs="+", choices=DENSITIES, default=list(DENSITIES), help="data sets (default: all)"
    )
    parser.add_argument("--at-a-time", type=int, default=1, help="trainings at a time (%(default)s)")
    arguments = parser.parse_args()
    for name in arguments.only:
        prepare(arguments.work, name)
        line = ["pnfrec_dist.reproduce", "--dataset", name, "--models", *arguments.models]
        line += ["--seeds", str(arguments.seeds), "--at-a-time", str(arguments.at_a_time)]
        run(line, arguments.work)
        report = (arguments.work / "runs" / f"reproduce-{name}" / "report" / "report.md").read_text(encoding="utf-8")
        section = report.partition("## Many points")[2].partition("\n## ")[0]
        print(f"## {name}: {DENSITIES[name] or 'as built in'}\n{section}", flush=True)


def prepare(work: Path, name: str) -> None:
    """Writes and prepares the data, unless they are there."""
    if (work / "data" / "prepared" / name / "manifest.json").is_file():
        return
    conf = work / "conf" / "dataset" / f"{name}.yaml"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    write_ratings(work / "raw" / name / "ratings.csv", **DENSITIES[name])
    run(["spark_jobs", "--dataset", name, "--raw", f"raw/{name}"], work)


def run(line: list[str], work: Path) -> None:
    """One command, in `work`; what it prints goes to log.txt."""
    project = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", *line], cwd=work, stdout=log, stderr=log, env={**os.environ, **project}
        )
    if done.returncode:
        sys.exit(f"python -m {' '.join(line)} failed; see {work / 'log.txt'}")


if __name__ == "__main__":
    main()
