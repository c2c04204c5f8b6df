"""python -m benchmarks.recommend: times lists for users, and kills the command that makes them.

The lists are compared with plain PyTorch: the same encoder, all scores of a batch, a mask over seen items, torch.topk.
Each runs in a process of its own, with two threads; memory is the highest resident set beyond the loaded model and
users. The kills are of the command itself, on a data set of ML-1M's shape.

On a machine with a GPU, and with --shape, only the whole command is timed, reading and writing included.
"""

import argparse
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.cases import Result, measure
from benchmarks.prepared_like import write_prepared_like
from benchmarks.shapes import ml1m_like
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.user_histories import UserLists, read_users, user_parts
from pnfrec_dist.distributed import World
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.inference.artifact import IN_MLFLOW, Exported, write_exported
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings, joined
from pnfrec_dist.inference.trained_model import MLMODEL
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.loop import Hooks, TrainLoop

CATALOGS = (3_412, 100_000, 1_000_000)
GPU_SHAPES = ((138_000, 18_345, 256), (20_000, 1_000_000, 128))
"""(users, items, d); the first is that of ML-20M."""
USERS, K, BATCH = 1_024, 20, 256
PART = 2_000
"""users of a part, as spark_jobs writes them"""
SETTINGS = Settings(encoder=EncoderSettings(hidden_size=64, max_length=50), loss=LossSettings(0.45, 0.25))


def users_like(items: int, users: int = USERS) -> UserLists:
    data = ml1m_like(users, items)
    assert data.negative is not None
    both = joined(data.history, data.negative)
    seen = [np.unique(both.values[a:b]) for a, b in zip(both.offsets[:-1], both.offsets[1:], strict=True)]
    offsets = np.cumsum([0, *map(len, seen)])
    flags = Ragged(both.offsets, np.ones(len(both.values), dtype=bool))
    names = pa.array([f"u{number}" for number in range(users)])
    none = np.zeros(users, dtype=np.int32)
    return UserLists(names, both, flags, data.history, data.negative, Ragged(offsets, np.concatenate(seen)), none)


def model_like(items: int, settings: Settings = SETTINGS, data_digest: str = "") -> Exported:
    """A model with random weights."""
    model = build_model(items, settings).eval()
    with torch.no_grad():  # initial weights are so small that scores nearly tie
        model.item_table.weight[1:].normal_(0, 1, generator=torch.Generator().manual_seed(0))
    raw_ids = [str(item) for item in range(1, items + 1)]
    return Exported(settings, model, raw_ids, np.ones(items + 1, dtype=np.int64), 4.0, data_digest)


def lists(method: str, items: int, times: int) -> Result:
    """{seconds, mib, ids} of the lists of USERS users."""
    users, trained = users_like(items), model_like(items)
    model, catalog = trained.model, pa.array(trained.raw_ids)
    maker = ListMaker(trained, catalog, ListSettings(K, 0.0, False, BATCH), Filters(), torch.device("cpu"))

    @torch.inference_mode()
    def plain(count: int = USERS) -> pa.Table:
        tables = []
        for first in range(0, count, BATCH):
            rows = np.arange(first, min(first + BATCH, count))
            hidden_BD = model.last_hidden(history_batch(users.positive, rows, 50, torch.device("cpu")))
            scores_BV = hidden_BD @ model.item_table.weight.T
            is_seen_BV = torch.zeros(scores_BV.shape, dtype=torch.bool)
            for place, row in enumerate(rows.tolist()):
                is_seen_BV[place, users.seen.row(row)] = True
            is_seen_BV[:, 0] = True
            best = scores_BV.masked_fill_(is_seen_BV, -torch.inf).topk(K, dim=1)
            ids, scores = best.indices.numpy().ravel(), best.values.numpy().ravel()
            owner = users.user_ids.take(pa.array(np.repeat(rows, K)))
            tables.append(pa.table({"user_id": owner, "raw_item_id": catalog.take(pa.array(ids - 1)), "score": scores}))
        return pa.concat_tables(tables)

    def ours() -> pa.Table:
        return maker.make(users)

    plain(4)  # loads the code into memory; otherwise it would count as data
    maker.make(users_like(items, 4))
    ctypes.CDLL(None).malloc_trim(0)  # memory that making the model left free would hide what is taken
    result, table = measure(plain if method == "plain" else ours, times)
    return {**result, "ids": table["raw_item_id"].to_pylist(), "scores": table["score"].to_pylist()}


def case(method: str, items: int, times: int) -> Result:
    """lists() in a process of its own."""
    request = json.dumps({"method": method, "items": items, "times": times})
    line = [sys.executable, "-m", "benchmarks.recommend", "--case", request]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=False)
    if done.returncode:
        raise SystemExit(f"{request} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare() -> None:
    print(f"top {K} of {USERS:,} users, d = 64, 2 threads, beside plain PyTorch (matmul, mask, torch.topk)")
    head, rows = ["items", "users/s", "plain", "ratio", "MiB", "plain", "ratio", "lists"], []
    for items in CATALOGS:
        ours, plain = (case(method, items, 3) for method in ("ours", "plain"))
        speed, plain_speed = USERS / ours["seconds"], USERS / plain["seconds"]
        is_same = np.array(ours["ids"]) == np.array(plain["ids"])
        near = np.allclose(ours["scores"], plain["scores"], rtol=1e-5, atol=1e-5)
        same = "equal" if is_same.all() else f"{(~is_same).sum()} swapped" if near else "DIFFER"
        speeds = [f"{speed:,.0f}", f"{plain_speed:,.0f}", f"{speed / plain_speed:.2f}x"]
        memory = [f"{ours['mib']:,.0f}", f"{plain['mib']:,.0f}", f"{ours['mib'] / plain['mib']:.1%}"]
        rows.append([f"{items:,}", *speeds, *memory, same])
    print(text_table(head, rows, ">" * len(head)))


def whole_command(users: int, items: int, width: int) -> str:
    """What the command says of its speed, and its seconds from start to end; lists of 10 items."""
    with tempfile.TemporaryDirectory(prefix="pnfrec-bench-") as scratch:
        work = Path(scratch)
        data = open_prepared(write_prepared_like(work / "prepared" / "like", users, items, PART))
        encoder = EncoderSettings(hidden_size=width, max_length=50)
        settings = Settings(dataset="like", encoder=encoder, loss=SETTINGS.loss)
        write_exported(work / "model" / IN_MLFLOW, model_like(items, settings, data.manifest.digest))
        (work / "model" / MLMODEL).touch()
        line = [sys.executable, "-m", "pnfrec_dist.recommend", "--run", str(work / "model"), "--top-k", "10"]
        line += ["--data-dir", str(work / "prepared"), "--out", str(work / "recs")]
        line += ["--num-gpus", "1"] if torch.cuda.is_available() else ["--num-workers", "1"]
        started = time.monotonic()
        printed = _finish(line)
        seconds = time.monotonic() - started
        if len(_content(work / "recs")) != 10 * users:
            raise SystemExit(f"the lists of {users:,} users lack rows")
    said = re.findall(r"[\d,]+ users/s", printed)[-1]
    return f"{users:,} users, {items:,} items, d = {width}: {said}; {seconds:.1f} s from start to end"


def kills(count: int, users: int) -> None:
    """Kills the command at random moments, starts it again, and checks the lists after both."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="pnfrec-bench-") as scratch:
        work = Path(scratch)
        data = open_prepared(write_prepared_like(work / "prepared" / "like", users))
        settings = Settings(
            dataset="like", epochs=1, encoder=SETTINGS.encoder, loss=SETTINGS.loss, train=TrainSettings(batch_size=500)
        )
        loop = TrainLoop(settings, data, work / "run", World(), Hooks(lambda _: None, lambda: False))
        loop.run()
        (checkpoint,) = (work / "run" / "checkpoints").glob("step-*")
        line = [sys.executable, "-m", "pnfrec_dist.recommend", "--run", str(checkpoint), "--out", str(work / "recs")]
        line += ["--data-dir", str(work / "prepared"), "--num-workers", "2"]
        started = time.monotonic()
        _finish(line)
        whole = time.monotonic() - started
        undisturbed, good = _content(work / "recs"), 0
        seen = _seen(data)
        print(f"\n{count} kills of a command that takes {whole:.0f} s for {users:,} users, each followed by a restart")
        for number in range(count):
            (work / "recs" / "_manifest.json").write_text('{"kind": "recommendations", "old": true}\n')
            process = subprocess.Popen(
                line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            moment = chance.uniform(0.1, whole)
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            left = json.loads((work / "recs" / "_manifest.json").read_text()) if (work / "recs").exists() else {}
            before = "old" if left.get("old") else "new" if left else "none"
            made = len(list((work / ".recs.making").glob("part-*.json")))
            _finish(line)
            lists = _content(work / "recs")
            is_whole = lists.equals(undisturbed) and _unseen(lists, seen)
            good += is_whole
            print(
                f"{number + 1:>4}  killed after {moment:4.1f} s: {made:>3} parts made, lists: {before:<4}  "
                f"after the restart: {'complete' if is_whole else 'WRONG'}",
                flush=True,
            )
        print(f"{good} of {count} complete: equal to those of an undisturbed command, each user once, no seen item")


def _finish(line: list[str]) -> str:
    """What the command printed."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the command failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout


def _content(directory: Path) -> pa.Table:
    return pq.read_table(directory, schema=None).combine_chunks()


def _seen(data: PreparedData) -> set[tuple[str, str]]:
    found = set()
    for part in user_parts(data):
        users = read_users(part, data.num_items)
        owner = np.repeat(np.arange(len(users)), users.seen.lengths)
        found |= set(zip(users.user_ids.take(pa.array(owner)).to_pylist(), map(str, users.seen.values), strict=True))
    return found


def _unseen(lists: pa.Table, seen: set[tuple[str, str]]) -> bool:
    """Whether no list holds an item that its user has seen, and no user has an item or a rank twice."""
    pairs = list(zip(lists["user_id"].to_pylist(), lists["raw_item_id"].to_pylist(), strict=True))
    ranks = list(zip(lists["user_id"].to_pylist(), lists["rank"].to_pylist(), strict=True))
    return not seen & set(pairs) and len(set(pairs)) == len(pairs) and len(set(ranks)) == len(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommend", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="how often the command is killed; 0: never")
    parser.add_argument("--users", type=int, default=20_000, help="users of the data set for the kills")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("USERS", "ITEMS", "D"), help="time the command alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        torch.set_num_threads(2)
        print(json.dumps(lists(**json.loads(arguments.case))))
        return
    if arguments.shape or torch.cuda.is_available():
        for shape in [arguments.shape] if arguments.shape else GPU_SHAPES:
            print(whole_command(*shape), flush=True)
        return
    compare()
    if arguments.kills:
        kills(arguments.kills, arguments.users)


if __name__ == "__main__":
    main()
