"""A run keeps the precision that it began with, whatever auto means where it goes on."""

import dataclasses
from pathlib import Path

import pytest

from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.model import precision
from pnfrec_dist.model.precision import AMX_SIZE, Precision, with_precision
from pnfrec_dist.training.events import EpochDone, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.result import read_result

SETTINGS = Settings(
    epochs=2,
    encoder=EncoderSettings(hidden_size=-(-AMX_SIZE // 30), num_blocks=1, max_length=5),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=30),
    evaluation=EvaluationSettings(cutoffs=(5, 10)),
)


def losses(settings: Settings, prepared: Path, run_dir: Path) -> list[float]:
    """Of the epochs that this call trained."""
    events: list[Event] = []
    TrainLoop(settings, open_prepared(prepared), run_dir, World(), Hooks(events.append, lambda: False)).run()
    return [event.metrics["train/loss"] for event in events if isinstance(event, EpochDone)]


def used(run_dir: Path) -> str:
    result = read_result(run_dir)
    assert result is not None
    return result.settings["train"]["precision"]


@pytest.mark.parametrize(("began", "other"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_resumed_run_keeps_its_precision(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: Precision, other: Precision
) -> None:
    whole = losses(with_precision(SETTINGS, began), prepared, tmp_path / "whole")
    monkeypatch.setattr(precision, "has_amx", lambda: began == "bfloat16")
    first = losses(dataclasses.replace(SETTINGS, epochs=1), prepared, tmp_path / "parts")
    monkeypatch.setattr(precision, "has_amx", lambda: other == "bfloat16")
    second = losses(SETTINGS, prepared, tmp_path / "parts")
    assert first + second == whole and used(tmp_path / "parts") == began
    assert losses(with_precision(SETTINGS, other), prepared, tmp_path / "other") != whole
