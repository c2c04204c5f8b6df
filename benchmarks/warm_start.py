"""python -m benchmarks.warm_start: trains on data that grow, from nothing and from the model before.

growing     A log is cut by time into six data sets; each holds the one before. On each, a cold training, and a warm one
            that begins with the warm one before (--init-from). Steps count until validation (many points) reaches the
            best of the cold training; the test is over many points, with intervals over test users.
new-items   The built-in log, with a tenth of the items new after half of the time. Each rule for their first vectors;
            NDCG_p@10 of points whose target is new, and of points with old targets of equal popularity.

--work keeps everything, and the same command continues. On ML-1M, growing takes an hour on two cores.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.watched import watched
from pnfrec_dist.cli import run_command
from pnfrec_dist.config.settings import EvaluationSettings, Settings
from pnfrec_dist.data.points import required_points
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.evaluation.bootstrap import paired_point_intervals
from pnfrec_dist.evaluation.metrics import HEADLINE_CUTOFF, LOGGED_SELECTION, ndcg
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.files.text import score
from pnfrec_dist.model.encoder import INIT_STD
from pnfrec_dist.training import warm_start
from pnfrec_dist.training.held_out import MODEL
from pnfrec_dist.training.result import Result, read_result, read_test_points
from spark_jobs.synthetic import generate

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the log's rows, in each data set."""
NEW_ITEMS = 0.1
Rule = Callable[..., Tensor]


def drawn(_: object, found: warm_start.Catalogs, settings: Settings, __: object) -> Tensor:
    """As a new model: normal(0, 0.02)."""
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.empty(len(found.new_K), settings.encoder.vector_size).normal_(0.0, INIT_STD, generator=generator)


def mean_of_all(source: warm_start.Source, found: warm_start.Catalogs, _: object, __: object) -> Tensor:
    """The mean vector of all known items."""
    known = source.rows("weight", found.source_of_N[found.source_of_N > 0])
    return known.mean(0).expand(len(found.new_K), -1).clone()


COLD = "cold"
"""A training from nothing, beside the rules."""
RULES: dict[str, Rule] = {"users": warm_start.new_vectors, "normal": drawn, "mean": mean_of_all}
"""users: the mean of their users, which is the rule of --init-from."""


@dataclass(frozen=True)
class Bench:
    work: Path
    dataset: str
    model: str

    def prepare(self, name: str, write_raw: Callable[[Path], None]) -> PreparedData:
        """The data set `name`, from what write_raw writes into a directory."""
        directory = self.work / "data" / name / self.dataset
        if not (directory / "manifest.json").is_file():
            raw = self.work / "raw" / name
            shutil.rmtree(raw, ignore_errors=True)
            raw.mkdir(parents=True)
            write_raw(raw)
            flags = ["--dataset", self.dataset, "--raw", str(raw), "--data-dir", str(directory.parent)]
            watched([sys.executable, "-m", "spark_jobs", *flags], self.work, self.work / f"prep-{name}.txt")
        return open_prepared(Location(directory))

    def trained(self, name: str, data: PreparedData, start: Path | None = None, rule: str = "users") -> Path:
        """The run's directory. start: the run with whose weights it begins."""
        output = self.work / "runs" / name
        if not any(read_result(run) for run in output.glob("*/")):
            flags = ["--dataset", self.dataset, "--data-dir", str(data.directory.parent), "--model", self.model]
            flags += ["--output-dir", str(output), "--num-workers", "1", "--evaluation.select-on", "points"]
            flags += ["--init-from", str(start)] if start else []
            line = [sys.executable, "-m", "benchmarks.warm_start", "--train", rule, *flags]
            watched(line, self.work, self.work / f"train-{name}.txt")
            print(f"{name}: trained", flush=True)
        (run,) = output.glob("*/")
        return run


def growing(bench: Bench, log: Path, others: Sequence[Path]) -> list[list[str]]:
    """Rows of the table. log: a raw file whose last field of each line is the time; others: copied beside it."""
    lines = log.read_bytes().splitlines(keepends=True)
    times = np.array([int(line.strip().rpartition(b":" if b"::" in line else b",")[2]) for line in lines])
    order, rows, before = np.argsort(times, kind="stable"), [], None
    for share in SHARES:
        count = round(share * len(lines))

        def write(raw: Path, count: int = count) -> None:
            (raw / log.name).write_bytes(b"".join(lines[place] for place in np.sort(order[:count])))
            for other in others:
                shutil.copy(other, raw)

        data = bench.prepare(f"share-{share:g}", write)
        cold = bench.trained(f"cold-{share:g}", data)
        warm = bench.trained(f"warm-{share:g}", data, before) if before else cold
        if before:
            rows.append(
                [f"{share:.0%}", f"{len(data.train('positive')):,}", _items(data, before), *_beside(cold, warm)]
            )
        before = warm
    return rows


def _items(data: PreparedData, before: Path) -> str:
    result = _result(before)
    return f"{data.num_items:,} ({data.num_items - result.num_items:+,})"


def _beside(cold: Path, warm: Path) -> list[str]:
    wanted = _best(cold)
    epochs = _result(warm).epochs
    reached = next((epoch.epoch for epoch in epochs if epoch.metrics[LOGGED_SELECTION] >= wanted), None)
    of_cold, of_warm = read_test_points(cold), read_test_points(warm)
    assert of_cold is not None and of_warm is not None
    metrics = [f"ndcg_{group}_at_{HEADLINE_CUTOFF}" for group in ("p", "delta")]
    pair = of_warm.target_rank[MODEL][None], of_cold.target_rank[MODEL][None]
    found = paired_point_intervals(metrics, *pair, of_cold.target_is_positive, of_cold.user)
    cold_epochs = _result(cold).best_epoch
    share = "not reached" if reached is None else f"{reached} ({reached / cold_epochs:.2f})"
    return [f"{cold_epochs}", share, score(wanted), score(_best(warm)), *(found[metric].text for metric in metrics)]


def new_items(bench: Bench, seeds: int) -> list[list[str]]:
    """Rows of the table: of a cold training and of each rule, means over seeds."""
    rows = []
    for rule in (COLD, *RULES):
        found = [_of_new(bench, rule, seed) for seed in range(1, seeds + 1)]
        first, new, old = (float(np.mean(column)) for column in zip(*found, strict=True))
        rows.append([rule, score(first), score(new), score(old), f"{new / old:.2f}"])
    return rows


def _of_new(bench: Bench, rule: str, seed: int) -> tuple[float, float, float]:
    """(NDCG_p@10 of validation after the first epoch; NDCG_p@10 of test points with new targets, and of points with old
    targets, weighted so that both have the same popularity)."""
    ratings, catalog = generate(seed)
    ratings = ratings[np.argsort(ratings[:, 3], kind="stable")]
    half = ratings[len(ratings) // 2, 3]
    fresh = np.random.default_rng(seed).permutation(catalog[:, 0])[: round(NEW_ITEMS * len(catalog))]
    rows = ratings[~(np.isin(ratings[:, 1], fresh) & (ratings[:, 3] < half))]

    def write(raw: Path, kept: np.ndarray) -> None:
        np.savetxt(raw / "items.csv", catalog, fmt="%d,Genre %d No. %d", header="item,title", comments="")
        header = "user,item,rating,timestamp"
        np.savetxt(raw / "ratings.csv", kept, fmt="%d,%d,%d,%d", header=header, comments="")

    old_data = bench.prepare(f"old-{seed}", lambda raw: write(raw, rows[rows[:, 3] < half]))
    data = bench.prepare(f"whole-{seed}", lambda raw: write(raw, rows))
    before = bench.trained(f"old-{seed}", old_data)
    run = bench.trained(f"cold-{seed}", data) if rule == COLD else bench.trained(f"{rule}-{seed}", data, before, rule)
    points, ranks = required_points(data, "test", "positive", EvaluationSettings()), read_test_points(run)
    assert ranks is not None and np.array_equal(ranks.target_is_positive, points.target_is_positive)
    rank = ranks.target_rank[MODEL]
    gain = ndcg(rank, HEADLINE_CUTOFF)[points.target_is_positive]
    target = points.target_item[points.target_is_positive]
    is_new = np.isin(np.array(data.raw_item_ids().to_pylist())[target - 1], fresh.astype(str))
    bin_P = np.log2(data.item_counts(positive_only=False)[target] + 1.0).astype(int)
    new, old = gain[is_new], 0.0
    for one in np.unique(bin_P[is_new]):
        others = gain[~is_new & (bin_P == one)]
        old += (bin_P[is_new] == one).mean() * (others.mean() if len(others) else new.mean())
    return _result(run).epochs[0].metrics[LOGGED_SELECTION], float(new.mean()), float(old)


def _result(run: Path) -> Result:
    found = read_result(run)
    assert found is not None, run
    return found


def _best(run: Path) -> float:
    result = _result(run)
    return next(epoch.metrics[LOGGED_SELECTION] for epoch in result.epochs if epoch.epoch == result.best_epoch)


def main(args: Sequence[str]) -> int:
    if args[:1] == ["--train"]:
        from pnfrec_dist.train import main as train

        with patch.object(warm_start, "new_vectors", RULES[args[1]]):
            return train(args[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.warm_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", type=Path, help="directory with ML-1M's files, for growing")
    parser.add_argument("--work", type=Path, default=Path("runs/warm_start"), help="default: %(default)s")
    parser.add_argument("--model", default="sasrec_p", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=("growing", "new-items"), default=("growing", "new-items"))
    parser.add_argument("--seeds", type=int, default=3, help="of new-items (default: %(default)s)")
    found = parser.parse_args(args)
    work = found.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if "growing" in found.parts:
        if found.raw is None:
            parser.error("growing needs --raw, a directory with ratings.dat and movies.dat")
        raw = found.raw.absolute()
        rows = growing(Bench(work, "ml1m", found.model), raw / "ratings.dat", [raw / "movies.dat"])
        head = ["rows", "users", "items (more)", "best epoch, cold", "epochs, warm", "validation, cold", "warm"]
        print(markdown_table([*head, "test NDCG_p@10: warm minus cold", "dNDCG@10"], rows))
    if "new-items" in found.parts:
        rows = new_items(Bench(work, "synthetic", found.model), found.seeds)
        head = ["rule", "validation after 1 epoch", "test NDCG_p@10, new targets", "old targets, equal popularity"]
        print(markdown_table([*head, "ratio"], rows))
    return 0


if __name__ == "__main__":
    run_command(main)
