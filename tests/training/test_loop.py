"""The loop with one rank, without Ray: resuming, early stopping, the best epoch, what it reports."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pnfrec_dist.config import (
    EncoderSettings,
    EvaluationSettings,
    LossSettings,
    OptimizerSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.training import loop
from pnfrec_dist.training.checkpoint import read_state
from pnfrec_dist.training.loop import Event, Hooks, TrainLoop

SETTINGS = Settings(
    epochs=4,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5, dropout=0.3),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
    evaluation=EvaluationSettings(cutoffs=(5, 10)),
)


def run(
    settings: Settings, prepared: Path, run_dir: Path, should_stop: Callable[[], bool] = lambda: False
) -> list[Event]:
    events: list[Event] = []
    TrainLoop(settings, open_prepared(prepared), run_dir, World(), Hooks(events.append, should_stop)).run()
    return events


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "train/users_per_s"}


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 11, 15])
def test_stopped_and_resumed_equals_uninterrupted_bitwise(prepared: Path, tmp_path: Path, stop_at: int) -> None:
    """4 epochs of 4 steps; the stop is asked for before step `stop_at`, inside and at the ends of epochs."""
    whole = run(SETTINGS, prepared, tmp_path / "whole")
    asked = iter(range(1, 100))
    first = run(SETTINGS, prepared, tmp_path / "parts", lambda: next(asked) >= stop_at)
    stops = of_kind(first, "stopped")
    assert len(of_kind(first, "epoch")) == stop_at // 4 and len(stops) == 1
    second = run(replace(SETTINGS, resume=stops[0]["checkpoint"]), prepared, tmp_path / "parts")
    parts = of_kind(first, "epoch") + of_kind(second, "epoch")
    assert [untimed(e["metrics"]) for e in parts] == [untimed(e["metrics"]) for e in of_kind(whole, "epoch")]
    assert of_kind(second, "test")[0]["metrics"] == of_kind(whole, "test")[0]["metrics"]
    last = "checkpoints/epoch-0004"
    for name in ("model.safetensors", "optimizer.safetensors", "items-00000-of-00001.safetensors"):
        a, b = load_file(tmp_path / "whole" / last / name), load_file(tmp_path / "parts" / last / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not (tmp_path / "parts/checkpoints/stopped").exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(prepared: Path, tmp_path: Path) -> None:
    runs = [run(replace(SETTINGS, seed=s), prepared, tmp_path / str(i)) for i, s in enumerate((1, 1, 2))]
    losses = [[e["metrics"]["train/loss"] for e in of_kind(events, "epoch")] for events in runs]
    assert losses[0] == losses[1] != losses[2]


def test_early_stopping_restores_the_best_epoch(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation scores are made to rise twice and then fall; the test must see the weights of epoch 2."""
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9, 0.9])
    real, tested = loop.evaluate, []

    def scripted(score_rows: object, holdout: object, *rest: object, **named: bool) -> dict[str, float]:
        result = real(score_rows, holdout, *rest, **named)  # type: ignore[arg-type]
        if len(holdout) == 8:  # type: ignore[arg-type]
            return {**result, "ndcg_p_at_10": next(scores)}
        tested.append(result)
        return result

    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = replace(SETTINGS, epochs=50, train=TrainSettings(batch_size=8, patience=3))
    events = run(settings, prepared, tmp_path)
    assert [e["is_best"] for e in of_kind(events, "epoch")] == [True, True, False, False, False]
    (test,) = of_kind(events, "test")
    assert test["best_epoch"] == 2
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch-0002", "epoch-0005"]
    state = read_state(tmp_path / "checkpoints/epoch-0002")["train_state"]
    assert state["best_epoch"] == 2 and state["epoch"] == 3

    monkeypatch.setattr(loop, "evaluate", real)
    two_epochs = run(replace(SETTINGS, epochs=2), prepared, tmp_path / "two")
    trained = load_file(tmp_path / "checkpoints/epoch-0002/model.safetensors")
    expected = load_file(tmp_path / "two/checkpoints/epoch-0002/model.safetensors")
    assert all(torch.equal(trained[key], expected[key]) for key in expected)
    assert len(of_kind(two_epochs, "epoch")) == 2
    assert tested[0] == test["metrics"] and tested[1] == test["popularity"]


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (LossSettings(0.45, 0.25), {"ce_positive", "ce_negative", "contrastive"}),
        (LossSettings(0.45, 0.0), {"ce_positive", "ce_negative"}),
        (LossSettings(0.0, 0.25), {"ce_positive", "contrastive"}),
        (LossSettings(0.0, 0.0), {"ce_positive"}),
    ],
)
def test_reported_loss_is_the_weighted_sum_of_the_reported_terms(
    prepared: Path, tmp_path: Path, loss: LossSettings, terms: set[str]
) -> None:
    metrics = of_kind(run(replace(SETTINGS, loss=loss, epochs=1), prepared, tmp_path), "epoch")[0]["metrics"]
    assert {m.removeprefix("train/") for m in metrics if m.startswith("train/")} == terms | {"loss", "users_per_s"}
    weights = {"ce_positive": 1.0, "ce_negative": loss.alpha, "contrastive": loss.beta}
    assert metrics["train/loss"] == pytest.approx(sum(weights[t] * metrics[f"train/{t}"] for t in terms))


def test_a_loss_that_is_not_finite_ends_the_run_and_is_said(prepared: Path, tmp_path: Path) -> None:
    events = run(replace(SETTINGS, optimizer=OptimizerSettings(lr=1e30)), prepared, tmp_path)
    assert of_kind(events, "diverged") and not of_kind(events, "test")


def test_a_stop_is_heard_when_an_epoch_has_one_step(prepared: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, train=TrainSettings(batch_size=500), epochs=50)
    asked = iter(range(1, 100))
    events = run(settings, prepared, tmp_path, lambda: next(asked) >= 3)
    assert len(of_kind(events, "epoch")) == 3 and len(of_kind(events, "stopped")) == 1
    assert read_state(Path(of_kind(events, "stopped")[0]["checkpoint"]))["train_state"]["epoch"] == 4
