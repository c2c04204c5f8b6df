"""python -m benchmarks.step_model: computes a training step's time and memory on 1 to 64 GPUs; prints Markdown tables.

docs/cluster.md shows them, and says what is measured, counted and assumed. R ranks with a GPU each; of one rank: T
targets, U distinct items to look up. V = N + 1 table rows, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.files.tables import markdown_table
from pnfrec_dist.model.dual_encoder import DualEncoder

RANKS = (1, 2, 4, 8, 16, 32, 64)
FLOAT, INT = 4, 8
TERMS = 3
"""of the loss: two cross-entropies and the contrastive term"""
TARGETS_OF_USER, ITEMS_OF_USER = 38 + 29, 39 + 30
"""As in benchmarks/shapes.py. The windows of a user have an item more than targets on each side."""
MACHINE = 8
"""GPUs"""
NVLINK, NETWORK = 350e9, 40e9
"""Reached bytes/s that a GPU sends within a machine and to other machines: 78 and 80 % of an H100's NVLink (450 GB/s)
and of a network card of 400 Gb/s for each GPU."""
LATENCY = 50e-6
"""seconds of an exchange beside those of its bytes"""
FLOOR = 0.037
"""Steps of several GPUs are not recorded as CUDA graphs, and launching their kernels took so many seconds on the
measured machine, whatever their size. Less is shown as this bound."""
GPU_MEMORY = 2.5e12
"""reached bytes/s, 75 % of an H100's"""
ADAM_BYTES = 28
"""read and written for each weight: weight, gradient and both moments; weight and moments"""


@dataclass(frozen=True)
class Case:
    items: int
    width: int
    seconds: float
    """a bf16 step of `users` users on one H100"""
    users: int = 2_000


CASES = (Case(18_345, 256, 0.0284), Case(1_000_000, 128, 0.2706), Case(10_000_000, 128, 10 * 0.2706))
"""The first two were measured. The last is the second, times the number of items."""


@dataclass(frozen=True)
class Load:
    """What one rank does in a step. With a fractional number of users per rank, targets are fractional, too."""

    items: int
    width: int
    targets: float
    looked_up: float
    encoder_parameters: int
    ranks: int
    sharded: bool


@dataclass(frozen=True)
class Exchange:
    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    bytes: float
    """of the tensor that each rank hands over"""


def exchanges(load: Load) -> list[Exchange]:
    """All exchanges of a step, in their order, with one part and without a limit of the gradients' norm."""
    ranks, rows = load.ranks, FLOAT * load.width
    counts = Exchange("all_reduce", INT * (TERMS + 2))
    encoders = Exchange("all_reduce", FLOAT * load.encoder_parameters)
    totals = Exchange("all_reduce", INT * (TERMS + 1))
    if not load.sharded:
        return [counts, encoders, Exchange("all_reduce", rows * (load.items + 1)), totals]
    lookup = [
        Exchange("all_to_all", INT * ranks),
        Exchange("all_to_all", INT * load.looked_up),
        Exchange("all_to_all", rows * load.looked_up),
    ]
    softmax = [
        Exchange("all_reduce", INT * ranks),
        Exchange("all_gather", rows * load.targets),
        Exchange("all_gather", INT * load.targets),
        Exchange("all_gather", FLOAT * load.targets),
        Exchange("all_reduce", FLOAT * ranks * load.targets),
        Exchange("all_gather", FLOAT * ranks * load.targets),
        Exchange("reduce_scatter", rows * ranks * load.targets),
    ]
    return [counts, *lookup, *softmax, encoders, Exchange("all_to_all", rows * load.looked_up), totals]


def seconds_of(exchange: Exchange, ranks: int) -> float:
    """Rings send each byte once over the cards of a machine. An exchange of all with all sends directly."""
    if exchange.kind == "all_to_all":
        near = min(ranks, MACHINE)
        inside, outside = exchange.bytes * (near - 1) / ranks, exchange.bytes * (ranks - near) / ranks
        return LATENCY + max(inside / NVLINK, outside / NETWORK)
    share = (ranks - 1) / ranks
    times = {"all_reduce": 2 * share, "all_gather": ranks - 1, "reduce_scatter": share}[exchange.kind]
    return LATENCY + times * exchange.bytes / (NVLINK if ranks <= MACHINE else min(NVLINK, MACHINE * NETWORK))


def load_of(case: Case, ranks: int, users: float, *, sharded: bool) -> Load:
    """users: of one rank. Looked-up items are distinct ones of draws that are uniform over the catalog; real popular
    items repeat more often."""
    looked_up = case.items * -math.expm1(-ITEMS_OF_USER * users / case.items)
    encoders = DualEncoder(EncoderSettings(hidden_size=case.width), with_negative=True)
    parameters = sum(parameter.numel() for parameter in encoders.parameters())
    return Load(case.items, case.width, TARGETS_OF_USER * users, looked_up, parameters, ranks, sharded and ranks > 1)


def step_seconds(case: Case, ranks: int, users: float, *, sharded: bool) -> tuple[float, float]:
    """(Computing, exchanges) of a step with `users` users on each rank.

    A sharded softmax has R * T targets over V / R rows: as much work as T targets over V rows. Adam's part of the
    measured time is that of a rank's rows.
    """
    load = load_of(case, ranks, users, sharded=sharded)
    adam = ADAM_BYTES * case.items * case.width / GPU_MEMORY
    own = adam / ranks if load.sharded else adam
    computing = (case.seconds - adam) * users / case.users + own
    return computing, sum(seconds_of(exchange, ranks) for exchange in exchanges(load)) if ranks > 1 else 0.0


def memory(case: Case, ranks: int, users: float, *, sharded: bool) -> float:
    """Bytes of a rank's rows with gradients and moments, and of the softmax's inputs, as in the memory plan."""
    shards = ranks if sharded else 1
    rows = 4 * FLOAT * (case.items + 1) * case.width / shards
    return rows + FLOAT * (1 + 3 * shards) * TARGETS_OF_USER * users * case.width


def _step_cell(case: Case, ranks: int, users: float, *, sharded: bool) -> str:
    """Milliseconds, and the share of the exchanges."""
    computing, sending = step_seconds(case, ranks, users, sharded=sharded)
    total = computing + sending
    is_computed = ranks == 1 or total >= FLOOR
    return f"{1e3 * total:,.0f} ({sending / total:.0%})" if is_computed else f"{1e3 * FLOOR:.0f}"


def _memory_cell(case: Case, ranks: int, users: float, *, sharded: bool) -> str:
    return f"{memory(case, ranks, users, sharded=sharded) / 1e9:.1f}"


def _table(cell: Callable[..., str], *, fixed: bool) -> str:
    """A row for each case and kind of table, a column for each number of GPUs. fixed: all ranks together have the users
    of one GPU."""
    rows = [
        [f"{case.items:,}", str(case.width), "sharded" if sharded else "replicated"]
        + [cell(case, ranks, case.users / (ranks if fixed else 1), sharded=sharded) for ranks in RANKS]
        for case in CASES
        for sharded in (False, True)
    ]
    return markdown_table(["N", "d", "table", *map(str, RANKS)], rows, ">><" + ">" * len(RANKS))


def tables() -> list[str]:
    """Steps with the same users on each GPU, steps with the same users in all, and the memory of the former."""
    return [_table(_step_cell, fixed=False), _table(_step_cell, fixed=True), _table(_memory_cell, fixed=False)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
