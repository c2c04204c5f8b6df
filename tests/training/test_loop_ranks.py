"""The loop on several ranks with a sharded item table: the same epochs, validation, test and checkpoints as on one."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.ranks import spawn

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.training.checkpoint_manager import checkpoint_path
from pnfrec_dist.training.events import Event
from pnfrec_dist.training.loop import Hooks, TrainLoop

SETTINGS = Settings(
    epochs=3,
    item_table="sharded",
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5, dropout=0.0),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
    evaluation=EvaluationSettings(cutoffs=(3, 10), batch_size=4),
)


def run(world: World, prepared: str, run_dir: str, stop_at: int, events_file: str) -> None:
    """Runs the loop; rank 0 writes its events. A stop is requested before step `stop_at`."""
    events: list[Event] = []
    asked = iter(range(1, 10_000))
    hooks = Hooks(events.append, lambda: next(asked) >= stop_at)
    TrainLoop(SETTINGS, open_prepared(Path(prepared)), Path(run_dir), world, hooks).run()
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
    run(World(), prepared, str(tmp_path / "alone"), 10_000, str(tmp_path / "alone.json"))
    expected = metrics_of(tmp_path / "alone.json")

    def start(size: int, stop_at: int, events_file: Path) -> None:
        args = (prepared, str(tmp_path / "parts"), stop_at, str(events_file))
        spawn(size, run, *args) if size > 1 else run(World(), *args)

    start(first, 7, tmp_path / "1.json")
    assert json.loads((tmp_path / "1.json").read_text())[-1]["kind"] == "Stopped"
    assert len(list(checkpoint_path(tmp_path / "parts", 7).glob("items-*"))) == first
    start(second, 10_000, tmp_path / "2.json")
    found = metrics_of(tmp_path / "1.json") + metrics_of(tmp_path / "2.json")
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-6)
