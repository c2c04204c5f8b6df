"""The loop on several ranks: the same epochs, validation, test, checkpoints and lists as on one.

Two ranks may share one GPU, if there is one: gloo copies their tensors through the CPU.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers.equal_runs import repeatable_sums, require_equal_checkpoints
from helpers.ranks import DEVICES, device_named, spawn
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.holdout import evaluate, model_scores
from pnfrec_dist.model.top_k import rank_items
from pnfrec_dist.training.checkpoint import load_model
from pnfrec_dist.training.checkpoint_manager import checkpoint_path
from pnfrec_dist.training.events import Event
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.loop import Hooks, TrainLoop

SETTINGS = Settings(
    epochs=3,
    item_table="sharded",
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5, dropout=0.0),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
    evaluation=EvaluationSettings(cutoffs=(3, 10), batch_size=4),
)


STEPS = 12
NEVER = 10_000


def run(
    world: World, prepared: str, run_dir: str, stop_at: int, events_file: str, settings: Settings = SETTINGS
) -> None:
    """Runs the loop; rank 0 writes its events. A stop is requested before step `stop_at`."""
    events: list[Event] = []
    asked = iter(range(1, NEVER))
    hooks = Hooks(events.append, lambda: next(asked) >= stop_at)
    TrainLoop(settings, open_prepared(Path(prepared)), Path(run_dir), world, hooks).run()
    if world.is_main:
        Path(events_file).write_text(json.dumps([{"kind": type(event).__name__, **asdict(event)} for event in events]))


def metrics_of(events_file: Path) -> list[dict[str, float]]:
    """The metrics of each epoch and of the test, without the speed."""
    events = [e for e in json.loads(events_file.read_text()) if e["kind"] in ("EpochDone", "BestTested")]
    return [{k: v for k, v in e["metrics"].items() if k != "train/users_per_s"} for e in events]


@pytest.mark.parametrize(("first", "second"), [(3, 1), (1, 2)])
def test_ranks_end_as_one_does_also_when_others_go_on(
    prepared_writer: Callable[..., Path], tmp_path: Path, first: int, second: int
) -> None:
    """`first` ranks train 6 of 12 steps, `second` ranks the rest. 200 items are ranked over shards."""
    prepared = str(prepared_writer(tmp_path / "prepared" / "tiny", items=200))
    run(World(), prepared, str(tmp_path / "alone"), NEVER, str(tmp_path / "alone.json"))
    expected = metrics_of(tmp_path / "alone.json")

    def start(size: int, stop_at: int, events_file: Path) -> None:
        args = (prepared, str(tmp_path / "parts"), stop_at, str(events_file))
        spawn(size, run, *args) if size > 1 else run(World(), *args)

    start(first, 7, tmp_path / "1.json")
    assert json.loads((tmp_path / "1.json").read_text())[-1]["kind"] == "Stopped"
    assert len(list(checkpoint_path(tmp_path / "parts", 7).glob("items-*"))) == first
    start(second, NEVER, tmp_path / "2.json")
    found = metrics_of(tmp_path / "1.json") + metrics_of(tmp_path / "2.json")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-6)


def best_of(world: World, prepared: str, checkpoint: Path, is_sharded: bool) -> tuple[dict[str, float], Tensor]:
    """(Metrics, lists of 10 items) of the test users, from a checkpoint, in float64."""
    data = open_prepared(Path(prepared))
    model = build_model(data.num_items, SETTINGS, world if is_sharded else None).to(world.device)
    load_model(checkpoint, model)
    model.double().eval()
    test = data.holdout("test", SETTINGS.encoder.history)
    scores, users = model_scores(model, world), np.arange(len(test))
    found = evaluate(scores, test, data.num_items, SETTINGS.evaluation, world, share_catalog=is_sharded)
    with torch.inference_mode():
        return found.metrics, rank_items(scores(test), 10, test.seen, users).items_BK


def stop_and_go_on(world: World, prepared: str, out: str, item_table: Literal["replicated", "sharded"]) -> None:
    """One run without a stop, and one that stops before step 7 and goes on."""
    settings = replace(SETTINGS, item_table=item_table)
    with repeatable_sums(world.device):
        for run_dir, stop_at, events in (("whole", NEVER, "whole"), ("parts", 7, "1"), ("parts", NEVER, "2")):
            run(world, prepared, f"{out}/{run_dir}", stop_at, f"{out}/{events}.json", settings)
    is_sharded, checkpoint = item_table == "sharded", checkpoint_path(Path(out) / "parts", STEPS)
    metrics, lists = best_of(world, prepared, checkpoint, is_sharded)
    expected_metrics, expected_lists = best_of(World(device=world.device), prepared, checkpoint, False)
    assert metrics == pytest.approx(expected_metrics, rel=1e-12)
    assert torch.equal(lists, expected_lists)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("item_table", ["replicated", "sharded"])
def test_two_ranks_that_stop_and_go_on_end_bitwise_equal_and_as_one(
    prepared_writer: Callable[..., Path], tmp_path: Path, item_table: str, device: str
) -> None:
    """Both ranks use the same GPU, if they use one."""
    prepared = str(prepared_writer(tmp_path / "prepared" / "tiny", items=200))
    spawn(2, stop_and_go_on, prepared, str(tmp_path), item_table, device=device)
    whole, parts = (checkpoint_path(tmp_path / name, STEPS) for name in ("whole", "parts"))
    assert len(list(parts.glob("items-*"))) == (2 if item_table == "sharded" else 1)
    require_equal_checkpoints(whole, parts)
    two = metrics_of(tmp_path / "whole.json")
    assert metrics_of(tmp_path / "1.json") + metrics_of(tmp_path / "2.json") == two
    alone = World(device=device_named(device))
    run(alone, prepared, str(tmp_path / "alone"), NEVER, str(tmp_path / "alone.json"))
    for found, expected in zip(two, metrics_of(tmp_path / "alone.json"), strict=True):
        assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)
