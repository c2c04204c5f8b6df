"""python -m benchmarks.gpu '<json>': makes one measurement on a GPU; the last line of its output is JSON.

Memory is the highest that torch had allocated during the measured call, minus what was allocated before it.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, Result
from benchmarks.shapes import ml1m_like
from pnfrec_dist.config.settings import EncoderSettings, ExactPath, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.loader import Loader
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.exact import plan_softmax
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.model.encoder import compile_encoders
from pnfrec_dist.model.item_table import ItemTable
from pnfrec_dist.model.precision import Precision
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.memory_plan import LIBRARIES, plan_step
from pnfrec_dist.training.step import Requests, train_step
from pnfrec_dist.training.step_graph import StepGraph, make_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""On a machine without a GPU, `step` runs on the CPU, so that a test can try it."""
THEIRS = "cut_cross_entropy"


def measure(call: Callable[[], Any], times: int = 5) -> Result:
    """{seconds: median, mib: peak beyond the start} of `times` calls after two that are not timed."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds), "mib": (torch.cuda.max_memory_allocated() - before) / 2**20}


def softmax(path: ExactPath, items: int, width: int, targets: int) -> Result:
    """Forward and backward of the cross-entropy in bf16. path cut_cross_entropy: Apple's, without skipped gradients.

    Peak memory includes the table's gradient (mib_gradient).
    """
    torch.manual_seed(0)
    table = ItemTable(items, width).to(DEVICE)
    with torch.no_grad():
        table.weight[1:].normal_(0, 1 / width**0.5)
    hidden_TD = torch.randn(targets, width, device=DEVICE).requires_grad_()
    targets_T = torch.randint(1, items + 1, (targets,), device=DEVICE)
    weights_T = torch.full((targets,), 1 / targets, device=DEVICE)
    settings = Settings(loss=LossSettings(exact_path=path), train=TrainSettings(precision="bfloat16"))

    def loss() -> Tensor:
        if path == THEIRS:
            from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

            return linear_cross_entropy(
                hidden_TD.bfloat16(), table.weight[1:].bfloat16(), targets_T - 1, filter_eps=None
            )
        tiling = plan_softmax(settings, targets, items, on_gpu=True)
        return cross_entropy(hidden_TD, table, targets_T, weights_T, tiling, torch.bfloat16)[0]

    def call() -> None:
        hidden_TD.grad = table.weight.grad = None
        loss().backward()
        table.collect_gradients()

    result = measure(call)
    return {**result, "loss": loss().item(), "mib_gradient": table.weight.numel() * 4 / 2**20}


def matmul_peak(dtype: str, width: int) -> Result:
    """FLOP/s of the faster of two matmuls: a large square one, and one as narrow as the step's."""
    best = 0.0
    for rows, inner, columns in ((8192, 8192, 8192), (32_768, width, 65_536)):
        a = torch.randn(rows, inner, device=DEVICE).to(DTYPES[dtype])
        b = torch.randn(inner, columns, device=DEVICE).to(DTYPES[dtype])
        best = max(best, 2 * rows * inner * columns / measure(lambda a=a, b=b: a @ b)["seconds"])
    return {"flops": best}


def step(
    items: int,
    width: int,
    batch_size: int = 500,
    precision: Precision = "bfloat16",
    steps: int = 12,
    compiled: bool = False,
) -> Result:
    """Training steps of the real loop, with histories as long as ML-1M's, over `items` items; compiled: train.compile.

    users_per_s, flops: of the median step, waiting for its batch included; waiting: share of the time; recorded: as a
    CUDA graph; mib: highest memory that torch had allocated; mib_planned: what the memory plan says without the host's
    part.
    """
    encoder, loss = EncoderSettings(hidden_size=width), LossSettings(0.45, 0.25)
    settings = Settings(
        encoder=encoder, loss=loss, train=TrainSettings(batch_size=batch_size, precision=precision, compile=compiled)
    )
    data, world = ml1m_like(users=batch_size * steps, items=items), World(device=DEVICE)
    model, objective = build_model(items, settings).to(DEVICE), Objective(settings)
    if compiled:
        compile_encoders(model.encoders)
    optimizer = make_optimizer(model, settings, world)
    graph = StepGraph.of(model, optimizer, objective, world, data)
    slots = graph.batches.plan if graph is not None else None
    batches = Loader(data, settings, objective.parts, None, world, slots).epoch(1, 0)
    seconds, waited, targets = [], [], 0.0
    while True:
        started = time.perf_counter()
        if (made := next(batches, None)) is None:
            break
        waited.append(time.perf_counter() - started)
        if isinstance(made[1], torch.Tensor):
            assert graph is not None
            sums = graph.step(made[1], Requests())
        else:
            sums = train_step(model, model.encoders, optimizer, made[1], objective, world, Requests())
        seconds.append(time.perf_counter() - started)
        targets += sums.counts["ce_main"] + sums.counts["ce_negative"]
    median = statistics.median(seconds[2:])
    flops = 3 * targets / len(seconds) * (encoder.num_blocks * 12 * width**2 + 2 * items * width)
    plan = plan_step(settings, data, items, 1, on_gpu=True)
    return {
        "seconds": median,
        "users_per_s": batch_size / median,
        "flops": flops / median,
        "waiting": sum(waited[2:]) / sum(seconds[2:]),
        "recorded": graph is not None,
        "mib": torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else 0.0,
        "mib_planned": (plan.total - plan.data - LIBRARIES) / 2**20,
    }


def has_theirs() -> bool:
    return importlib.util.find_spec(THEIRS) is not None


CASES = {"softmax": softmax, "matmul_peak": matmul_peak, "step": step}


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].startswith("{"):
        print(
            f'usage: python -m benchmarks.gpu \'{{"case": "step", ...}}\'; cases: {", ".join(CASES)}', file=sys.stderr
        )
        sys.exit(2)
    request = json.loads(sys.argv[1])
    if request["case"] != "step" and DEVICE.type != "cuda":
        print(f"error: the case {request['case']} needs a GPU; step runs on a CPU, too", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(CASES[request.pop("case")](**request)))


if __name__ == "__main__":
    main()
