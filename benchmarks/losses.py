"""python -m benchmarks.losses [--data data/prepared/ml1m]: trains with each cross-entropy and prints a table.

One worker with two threads; the seed and all settings but the loss are the same; no early stopping. Quality is that of
the best validation epoch, on the test users. GiB is the highest resident memory of the process. users/s are of training
only, the median over the epochs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases import status_kib
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, SampledSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.training.events import BestTested, EpochDone, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop

BASE = LossSettings(alpha=0.45, beta=0.25)
LOSSES = {
    "exact": (BASE, SampledSettings()),
    "sampled_softmax, 256 uniform": (
        replace(BASE, cross_entropy="sampled_softmax"),
        SampledSettings(num_items=256),
    ),
    "sampled_softmax, 256 by popularity": (
        replace(BASE, cross_entropy="sampled_softmax"),
        SampledSettings(num_items=256, distribution="popularity"),
    ),
    "gbce, 256 uniform": (replace(BASE, cross_entropy="gbce"), SampledSettings(num_items=256)),
    "sce, 128 buckets of 256 x 256": (
        replace(BASE, cross_entropy="sce"),
        SampledSettings(sce_buckets=128, sce_targets=256, sce_items=256),
    ),
}


def train(name: str, data: str, epochs: int) -> dict[str, float]:
    torch.set_num_threads(2)
    loss, sampled = LOSSES[name]
    settings = Settings(
        epochs=epochs,
        encoder=EncoderSettings(hidden_size=64),
        train=TrainSettings(batch_size=500, patience=epochs),
        loss=loss,
        sampled=sampled,
    )
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochDone):
            print(f"  {name}: epoch {event.epoch}  {event.metrics}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as run_dir:
        TrainLoop(settings, open_prepared(Path(data)), Path(run_dir), World(), Hooks(report, lambda: False)).run()
    speeds = [event.metrics["train/users_per_s"] for event in events if isinstance(event, EpochDone)]
    test = next(event for event in events if isinstance(event, BestTested))
    kept = {key: test.metrics[key] for key in ("hr_p_at_10", "ndcg_p_at_10", "hr_delta_at_10", "ndcg_delta_at_10")}
    return {
        "users_per_s": statistics.median(speeds),
        "gib": status_kib("VmHWM") / 2**20,
        **kept,
        "epoch": test.best_epoch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/prepared/ml1m", help="directory of a prepared data set")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", choices=LOSSES, help="train with one loss, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(train(arguments.only, arguments.data, arguments.epochs)))
        return
    rows = []
    for name in LOSSES:
        line = [sys.executable, "-m", "benchmarks.losses", "--only", name, "--data", arguments.data]
        done = subprocess.run([*line, "--epochs", str(arguments.epochs)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        quality = [f"{found[key]:.4f}" for key in list(found)[2:6]]
        rows.append([f"`{name}`", f"{found['users_per_s']:.0f}", f"{found['gib']:.2f}", *quality, str(found["epoch"])])
    head = ["loss", "users/s", "GiB", "HR_p@10", "NDCG_p@10", "dHR@10", "dNDCG@10", "best epoch"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
