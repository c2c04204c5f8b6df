"""benchmarks/step_model.py counts the bytes that training really sends, and docs/cluster.md shows its tables."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exchanges import recorded_calls
from helpers.ranks import spawn

from benchmarks.shapes import ml1m_like
from benchmarks.step_model import (
    CASES,
    ITEMS_OF_USER,
    RANKS,
    TARGETS_OF_USER,
    Exchange,
    Load,
    exchanges,
    load_of,
    seconds_of,
    step_seconds,
    tables,
)
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step

ITEMS, WIDTH, USERS, LENGTH = 300, 8, 5, 12
SETTINGS = Settings(encoder=EncoderSettings(hidden_size=WIDTH, max_length=20), loss=LossSettings(0.45, 0.25))


def send_one_step(world: World, out: str) -> None:
    """Each rank has as many targets, but other items. Writes what it sends, and what the model needs to know."""
    rng, offsets = np.random.default_rng(world.rank), np.arange(USERS + 1) * LENGTH
    sides = [Ragged(offsets, rng.integers(1, ITEMS + 1, offsets[-1], dtype=np.int32)) for _ in range(2)]
    batch = train_batch(
        TrainData(*sides), np.arange(USERS), SETTINGS.encoder, needed_parts(SETTINGS.loss), world.device
    )
    for sharded in (False, True):
        model = build_model(ITEMS, SETTINGS, world if sharded else None)
        encoders, optimizer = world.wrap(model.encoders), torch.optim.Adam(model.parameters())
        with recorded_calls() as calls:
            train_step(model, encoders, optimizer, [batch], Objective(SETTINGS), world, Requests())
        load = {
            "items": ITEMS,
            "width": WIDTH,
            "targets": 2 * USERS * (LENGTH - 1),
            "looked_up": len(batch.items_U),
            "encoder_parameters": sum(parameter.numel() for parameter in model.encoders.parameters()),
            "ranks": world.size,
            "sharded": sharded,
        }
        content = {"load": load, "calls": [(call.name, call.bytes) for call in calls]}
        Path(out, f"{world.rank}-{sharded}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("size", [2, 3])
def test_the_bytes_are_those_of_a_real_step(tmp_path: Path, size: int) -> None:
    """Summed over ranks: a rank answers as many lookups as its rows get, the mean rank as many as it asks."""
    spawn(size, send_one_step, str(tmp_path))
    for sharded in (False, True):
        counted, sent = Counter[str](), Counter[str]()
        for rank in range(size):
            found = json.loads((tmp_path / f"{rank}-{sharded}.json").read_text())
            for exchange in exchanges(Load(**found["load"])):
                counted[exchange.kind] += round(exchange.bytes)
            for name, size_of in found["calls"]:
                sent[name] += size_of
        assert counted == sent and len(sent) == (4 if sharded else 1)


def test_the_lengths_are_those_of_the_shapes() -> None:
    """The drawn lists meet ML-1M's lengths to a few percent."""
    data = ml1m_like()
    assert data.negative is not None
    windows = [np.minimum(side.lengths, 51) for side in (data.history, data.negative)]
    targets = sum(np.maximum(window - 1, 0).mean() for window in windows)
    assert targets == pytest.approx(TARGETS_OF_USER, rel=0.05)
    assert sum(window.mean() for window in windows) == pytest.approx(ITEMS_OF_USER, rel=0.05)


def test_the_times_follow_the_assumptions() -> None:
    gigabyte = 1e9
    ring = [seconds_of(Exchange("all_reduce", gigabyte), ranks) for ranks in (2, 8, 64)]
    assert ring == pytest.approx([1 / 350, 2 * 7 / 8 / 350, 2 * 63 / 64 / 320], rel=0.02)
    parts = seconds_of(Exchange("reduce_scatter", gigabyte), 4) + seconds_of(Exchange("all_gather", gigabyte / 4), 4)
    assert parts == pytest.approx(seconds_of(Exchange("all_reduce", gigabyte), 4), rel=0.02)
    assert seconds_of(Exchange("all_to_all", gigabyte), 16) == pytest.approx(1 / 80, rel=0.01)
    for case in CASES:
        for sharded in (False, True):
            assert step_seconds(case, 1, case.users, sharded=sharded) == pytest.approx((case.seconds, 0.0))
            computing = [step_seconds(case, ranks, case.users, sharded=sharded)[0] for ranks in RANKS]
            assert computing == pytest.approx([case.seconds] * len(RANKS), rel=0.01), "Adam is little of a step"


def test_auto_shards_where_that_is_faster() -> None:
    """Or at most 1 % slower. item_table auto compares N with R * T + U (training/memory_plan.py)."""
    for case, ranks in itertools.product(CASES, RANKS[1:]):
        for users in (case.users, case.users / ranks):
            load = load_of(case, ranks, users, sharded=False)
            chosen = case.items > ranks * load.targets + load.looked_up
            of_chosen, of_other = (sum(step_seconds(case, ranks, users, sharded=s)) for s in (chosen, not chosen))
            assert of_chosen <= 1.01 * of_other, (case, ranks, users)


def test_the_page_shows_the_tables() -> None:
    text = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert all(table in text for table in tables()), "copy the output of python -m benchmarks.step_model"
