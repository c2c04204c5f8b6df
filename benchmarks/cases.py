"""python -m benchmarks.cases '<json>': makes one measurement; the last line of its output is the result, as JSON.

Memory is the highest resident set during the measured call, minus that before it.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain_step import IGNORE_INDEX, PlainModel, plain_step
from benchmarks.shapes import ITEMS, ml1m_like
from pnfrec_dist.config.settings import EncoderSettings, ExactPath, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.batches import Sampled
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.catalog_loss import Samples, Targets
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.exact import CPU_TILE_MIB
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.sampled_softmax import SAMPLED_SOFTMAX
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.losses.tiling import plan_tiles
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.model.precision import Precision
from pnfrec_dist.model.top_k import rank_items, table_scores
from pnfrec_dist.training.allocator import keep_freed_memory
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step

SoftmaxPath = ExactPath | Literal["plain", "torch", "sampled"]
TILE_BYTES = CPU_TILE_MIB * 2**20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Result = dict[str, Any]


def measure(call: Callable[[], Any], times: int) -> tuple[Result, Any]:
    """({seconds: median, mib: peak beyond the start}, last result) of `times` calls after one that is not timed.

    times 0: of one call alone.
    """
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    result = call()
    first, peak = time.perf_counter() - started, status_kib("VmHWM") - before
    seconds = [] if times else [first]
    for _ in range(times):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "mib": peak / 1024}, result


def status_kib(field: str) -> int:
    """KiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def softmax(path: SoftmaxPath, items: int, width: int, targets: int, dtype: str = "float32", times: int = 3) -> Result:
    """Forward and backward of the cross-entropy over `items` items, each target with weight 1 / targets.

    plain: F.cross_entropy on all logits; torch: F.linear_cross_entropy; sampled: 1,024 items; else a path of ours.
    Peak memory includes the table's gradient (mib_gradient).
    """
    generator = torch.Generator().manual_seed(0)
    table = ItemTable(items, width)
    with torch.no_grad():
        table.weight[1:].normal_(0, 1 / width**0.5, generator=generator)
    hidden_TD = torch.randn(targets, width, generator=generator).requires_grad_()
    targets_T = torch.randint(1, items + 1, (targets,), generator=generator)
    weights_T = torch.full((targets,), 1 / targets)
    drawn = torch.randint(1, items + 1, (1024,), generator=generator).unique()
    sampled = Sampled(drawn, drawn, torch.ones_like(drawn), torch.full((len(drawn),), np.log(1024 / items)), 1024)

    def loss() -> Tensor:
        if path == "plain":
            return F.cross_entropy(hidden_TD @ table.weight[1:].T, targets_T - 1)
        if path == "torch":
            options = nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(hidden_TD, table.weight[1:], targets_T - 1, options=options)
        if path == "sampled":
            vectors = table.lookup(drawn), table.lookup(targets_T.unique())[targets_T.unique(return_inverse=True)[1]]
            samples = Samples(vectors[1], vectors[0], sampled)
            return SAMPLED_SOFTMAX(Targets(hidden_TD, targets_T, weights_T, samples), table, Settings())[0]
        tiling = plan_tiles(targets, items, TILE_BYTES, path, logit_bytes=DTYPES[dtype].itemsize)
        return cross_entropy(hidden_TD, table, targets_T, weights_T, tiling, DTYPES[dtype])[0]

    def call() -> float:
        hidden_TD.grad = table.weight.grad = None
        total = loss()
        total.backward()
        table.collect_gradients()
        return total.item()

    result, value = measure(call, times)
    return {**result, "loss": value, "mib_gradient": table.weight.numel() * 4 / 2**20}


def top_k(method: str, items: int, width: int, users: int, seen: int, times: int = 3) -> Result:
    """The ids of the 10 best unseen items. plain: matmul, mask, torch.topk."""
    generator = torch.Generator().manual_seed(0)
    table = ItemTable(items, width)
    with torch.no_grad():
        table.weight[1:].normal_(0, 1, generator=generator)
    hidden_BD = torch.randn(users, width, generator=generator)
    seen_BS = torch.randint(1, items + 1, (users, seen), generator=generator)
    lists = Ragged(np.arange(users + 1) * seen, seen_BS.numpy().ravel())

    @torch.inference_mode()
    def call(end: int = items + 1) -> Tensor:
        if method == "plain":
            scores_BV = hidden_BD @ table.weight[:end].T
            scores_BV[:, 0] = -torch.inf
            scores_BV.scatter_(1, seen_BS.clamp(max=end - 1), -torch.inf)
            return scores_BV.topk(10, dim=1).indices
        scores = replace(table_scores(hidden_BD, table), end=end)
        return rank_items(scores, 10, lists, np.arange(users)).items_BK

    call(1_000)  # loads the code into memory; otherwise it would count as data
    result, ids = measure(call, times)
    return {**result, "ids": ids.tolist()}


def matmul_peak(dtype: str, width: int, times: int = 7) -> Result:
    """FLOP/s of the fastest of some matmuls with the step's sizes and width, in one dtype."""
    best = 0.0
    for rows, inner, columns in ((2048, width, 4096), (512, width, 4096), (4096, width, width), (width, 8192, 4096)):
        a, b = torch.randn(rows, inner).to(DTYPES[dtype]), torch.randn(inner, columns).to(DTYPES[dtype])
        result, _ = measure(lambda a=a, b=b: a @ b, times)
        best = max(best, 2 * rows * inner * columns / result["seconds"])
    return {"flops": best}


def step(kind: str, width: int, precision: Precision = "float32", batch_size: int = 500, times: int = 0) -> Result:
    """Users/s of whole training steps on ML-1M's shapes; the time includes making the batches.

    times: 0 for 25 of our steps, in which most shapes have come before, as after two epochs of a training, or 5 plain
    ones.
    """
    encoder, loss = EncoderSettings(hidden_size=width), LossSettings(0.45, 0.25)
    settings = Settings(encoder=encoder, loss=loss, train=TrainSettings(precision=precision))
    data, world = ml1m_like(), World()
    order = np.random.default_rng(1).permutation(len(data))
    number, flops = iter(range(10**6)), []
    torch.manual_seed(0)
    if kind == "plain":
        model = PlainModel(ITEMS, encoder)
        optimizer = torch.optim.Adam(model.parameters())

        def call() -> float:
            rows = order[(next(number) * batch_size) % 5_000 :][:batch_size]
            sides = []
            assert data.negative is not None
            for side in (data.history, data.negative):
                ids = np.zeros((batch_size, 51), dtype=np.int64)
                window, _ = side.newest(rows, 51)
                ids[:, : window.shape[1]] = window
                inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
                sides.append((inputs, targets.masked_fill(targets == 0, IGNORE_INDEX)))
            contrast = torch.from_numpy(data.negative.newest(rows, 51)[0])
            return plain_step(model, optimizer, sides[0], sides[1], contrast, loss)
    else:
        keep_freed_memory()  # as the training loop does
        ours = build_model(ITEMS, settings)
        optimizer, objective = torch.optim.Adam(ours.parameters(), fused=True), Objective(settings)

        def call() -> float:
            rows = order[(next(number) * batch_size) % 5_000 :][:batch_size]
            batch = train_batch(data, rows, encoder, needed_parts(loss), world.device)
            flops.append(useful_flops(batch.main.targets_T, batch.negative.targets_T, width))  # type: ignore[union-attr]
            sums = train_step(ours, ours.encoders, optimizer, [batch], objective, world, Requests())
            return objective.means(sums.totals, sums.counts)["train/loss"]

    result, value = measure(call, times or (5 if kind == "plain" else 25))
    speed = {"users_per_s": batch_size / result["seconds"], "loss": value}
    return {**result, **speed, "flops": statistics.mean(flops) / result["seconds"] if flops else None}


def feeding(items: int, width: int, batch_size: int = 500, times: int = 2) -> Result:
    """Seconds of making a batch and of the step that reads it, measured one after the other."""
    encoder, loss = EncoderSettings(hidden_size=width), LossSettings(0.45, 0.25)
    settings, data, world = Settings(encoder=encoder, loss=loss), ml1m_like(items=items), World()
    model = build_model(items, settings)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    rows = np.random.default_rng(1).permutation(len(data))[:batch_size]
    made, batch = measure(lambda: train_batch(data, rows, encoder, needed_parts(loss), world.device), 9)
    objective = Objective(settings)
    stepped, _ = measure(
        lambda: train_step(model, model.encoders, optimizer, [batch], objective, world, Requests()), times
    )
    return {**stepped, "batch_seconds": made["seconds"]}


def useful_flops(positive_T: Tensor, negative_T: Tensor, width: int, num_blocks: int = 2) -> float:
    """FLOPs of a step's matmuls over real targets only: encoders and softmax, forward and backward."""
    tokens = len(positive_T) + len(negative_T)
    return 3 * tokens * (num_blocks * 12 * width**2 + 2 * ITEMS * width)


CASES = {"softmax": softmax, "top_k": top_k, "matmul_peak": matmul_peak, "step": step, "feeding": feeding}


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request.pop("threads", 1))
    print(json.dumps(CASES[request.pop("case")](**request)))


if __name__ == "__main__":
    main()
