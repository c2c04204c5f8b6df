"""The loop with one rank, without Ray: resuming, early stopping, the best epoch, steps that are not finite, reports."""

import errno
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from helpers.equal_runs import repeatable_sums, require_equal_checkpoints
from helpers.ranks import DEVICES, NEEDS_GPU, device_named
from safetensors.torch import load_file
from torch import Tensor

from pnfrec_dist.config.settings import (
    CheckpointSettings,
    EncoderSettings,
    EvaluationSettings,
    History,
    LossSettings,
    OptimizerSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.evaluation.baselines import BASELINES
from pnfrec_dist.evaluation.holdout import Evaluation
from pnfrec_dist.evaluation.metrics import of_points
from pnfrec_dist.files import atomic
from pnfrec_dist.training import held_out, loop
from pnfrec_dist.training.checkpoint import read_state
from pnfrec_dist.training.checkpoint_manager import checkpoint_path, checkpoints
from pnfrec_dist.training.events import (
    BestTested,
    Diverged,
    Earlier,
    EpochDone,
    Event,
    Started,
    StepDone,
    Stopped,
    Warned,
)
from pnfrec_dist.training.loop import Hooks, TrainLoop

E = TypeVar("E")
SETTINGS = Settings(
    epochs=4,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5, dropout=0.3),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
    evaluation=EvaluationSettings(cutoffs=(5, 10)),
)


def run(
    settings: Settings,
    prepared: Path,
    run_dir: Path,
    should_stop: Callable[[], bool] = lambda: False,
    device: str = "cpu",
) -> list[Event]:
    events: list[Event] = []
    world = World(device=device_named(device))
    TrainLoop(settings, open_prepared(prepared), run_dir, world, Hooks(events.append, should_stop)).run()
    return events


def of_kind(events: list[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "train/users_per_s"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("stop_at", "history"), [*((stop_at, "positive") for stop_at in (1, 3, 4, 6, 11, 15)), (6, "signed"), (6, "both")]
)
def test_stopped_and_resumed_equals_uninterrupted_bitwise(
    prepared: Path, tmp_path: Path, stop_at: int, history: History, device: str
) -> None:
    """4 epochs of 4 steps. A stop is requested before step `stop_at`, within and at the end of epochs."""
    asked, terms = iter(range(1, 100)), ("ce_likes=1",) if history == "both" else ()
    settings = replace(
        SETTINGS, encoder=replace(SETTINGS.encoder, history=history), loss=replace(SETTINGS.loss, terms=terms)
    )
    if history != "positive":
        settings = replace(settings, evaluation=replace(SETTINGS.evaluation, gamma="auto"))
    with repeatable_sums(device_named(device)):
        whole = run(settings, prepared, tmp_path / "whole", device=device)
        first = run(settings, prepared, tmp_path / "parts", lambda: next(asked) >= stop_at, device)
        second = run(settings, prepared, tmp_path / "parts", device=device)
    assert len(of_kind(first, EpochDone)) == stop_at // 4 and len(of_kind(first, Stopped)) == 1
    (started,) = of_kind(second, Started)
    assert 4 * (started.epoch - 1) + started.step == stop_at
    parts = of_kind(first, EpochDone) + of_kind(second, EpochDone)
    assert [untimed(e.metrics) for e in parts] == [untimed(e.metrics) for e in of_kind(whole, EpochDone)]
    (tested,), (expected,) = of_kind(second, BestTested), of_kind(whole, BestTested)
    assert (tested.metrics, tested.weights) == (expected.metrics, expected.weights)
    searched = {"positive": set(), "signed": {"gamma"}, "both": {"likes_share", "gamma"}}[history]
    assert tested.weights.keys() == searched
    require_equal_checkpoints(checkpoint_path(tmp_path / "whole", 16), checkpoint_path(tmp_path / "parts", 16))


@NEEDS_GPU
def test_on_a_gpu_a_stopped_run_goes_on(prepared: Path, tmp_path: Path) -> None:
    """With torch's faster algorithms, whose sums have no fixed order: the scores are close but not equal."""
    whole = run(SETTINGS, prepared, tmp_path / "whole", device="cuda")
    asked = iter(range(1, 100))
    first = run(SETTINGS, prepared, tmp_path / "parts", lambda: next(asked) >= 6, "cuda")
    second = run(SETTINGS, prepared, tmp_path / "parts", device="cuda")
    losses = [
        [event.metrics["train/loss"] for event in of_kind(events, EpochDone)] for events in (whole, first + second)
    ]
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert of_kind(second, BestTested)


def run_until_killed(prepared: Path, run_dir: Path, settings: Settings, kill_at: int) -> None:
    """Trains and kills itself with SIGKILL at the report of its step number `kill_at`."""
    steps = 0

    def report(event: Event) -> None:
        nonlocal steps
        steps += isinstance(event, StepDone)
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    TrainLoop(settings, open_prepared(prepared), run_dir, World(), Hooks(report, lambda: False)).run()


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_again_and_again_equals_uninterrupted_bitwise(prepared: Path, tmp_path: Path, background: bool) -> None:
    """Checkpoints every 3 steps; killed after 6, 2 and 5 steps, then not killed any more."""
    settings = replace(SETTINGS, checkpoint=CheckpointSettings(every_steps=3, background=background))
    whole = run(SETTINGS, prepared, tmp_path / "whole")
    for kill_at in (6, 2, 5):
        process = multiprocessing.get_context("spawn").Process(
            target=run_until_killed, args=(prepared, tmp_path / "parts", settings, kill_at)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    events = run(settings, prepared, tmp_path / "parts")
    assert of_kind(events, Started)[0].step + of_kind(events, Started)[0].epoch > 1
    told = [*of_kind(events, Earlier)[0].epochs, *of_kind(events, EpochDone)]
    assert [untimed(e.metrics) for e in told] == [untimed(e.metrics) for e in of_kind(whole, EpochDone)]
    require_equal_checkpoints(checkpoint_path(tmp_path / "whole", 16), checkpoint_path(tmp_path / "parts", 16))
    assert not list((tmp_path / "parts/checkpoints").glob(".*"))


def test_the_newest_and_the_best_stay(prepared: Path, tmp_path: Path) -> None:
    """The three newest checkpoints are kept, and for each of them that of its best epoch."""
    settings = replace(SETTINGS, checkpoint=CheckpointSettings(every_steps=1, keep=3))
    events = run(settings, prepared, tmp_path)
    kept = checkpoints(tmp_path)
    best = checkpoint_path(tmp_path, 4 * of_kind(events, BestTested)[0].best_epoch)
    assert kept[0] == checkpoint_path(tmp_path, 16) and best in kept
    known_best = {read_state(path)["train_state"]["best_steps"] for path in kept[:3]} - {0}
    assert set(kept) == {*kept[:3], *(checkpoint_path(tmp_path, steps) for steps in known_best)}


@pytest.mark.parametrize("damage", ["flip", "truncate", "no marker"])
def test_a_damaged_checkpoint_is_passed_over_by_name(prepared: Path, tmp_path: Path, damage: str) -> None:
    settings = replace(SETTINGS, checkpoint=CheckpointSettings(every_steps=1))
    run(SETTINGS, prepared, tmp_path / "whole")
    asked = iter(range(1, 100))
    run(settings, prepared, tmp_path / "parts", lambda: next(asked) >= 7)
    newest, before = checkpoints(tmp_path / "parts")[:2]
    file = newest / ("COMMITTED" if damage == "no marker" else "model.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    events = run(settings, prepared, tmp_path / "parts")
    (warning,) = of_kind(events, Warned)
    assert str(newest) in warning.text and warning.text.endswith("not used")
    (started,) = of_kind(events, Started)
    assert before.name == checkpoint_path(tmp_path, 4 * (started.epoch - 1) + started.step).name
    require_equal_checkpoints(checkpoint_path(tmp_path / "whole", 16), checkpoint_path(tmp_path / "parts", 16))


def test_a_full_disk_keeps_the_old_checkpoints_and_says_so(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(1, 100))
    run(SETTINGS, prepared, tmp_path, lambda: next(asked) >= 4)
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    events = run(SETTINGS, prepared, tmp_path, lambda: next(asked) >= 9)
    assert [type(e) for e in events if isinstance(e, Warned | Stopped)] == [Warned, Warned, Stopped]
    assert all("No space left on device" in e.text for e in of_kind(events, Warned))
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 4)]
    assert read_state(checkpoint_path(tmp_path, 4))
    monkeypatch.setattr(os, "fsync", real)
    assert of_kind(run(SETTINGS, prepared, tmp_path), BestTested)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(prepared: Path, tmp_path: Path) -> None:
    runs = [run(replace(SETTINGS, seed=s), prepared, tmp_path / str(i)) for i, s in enumerate((1, 1, 2))]
    losses = [[e.metrics["train/loss"] for e in of_kind(events, EpochDone)] for events in runs]
    assert losses[0] == losses[1] != losses[2]


def test_early_stopping_restores_the_best_epoch(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation scores are made to rise twice and then fall; the test must see the weights of epoch 2."""
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9, 0.9])
    real, tested = held_out.evaluate, []

    def scripted(score_rows: object, holdout: object, *rest: object, **named: bool) -> Evaluation:
        result = real(score_rows, holdout, *rest, **named)  # type: ignore[arg-type]
        if len(holdout) == 8:  # type: ignore[arg-type]
            return replace(result, metrics={**result.metrics, "ndcg_p_at_10": next(scores)})
        tested.append(result.metrics)
        return result

    monkeypatch.setattr(held_out, "evaluate", scripted)
    settings = replace(SETTINGS, epochs=50, train=TrainSettings(batch_size=8, patience=3))
    events = run(settings, prepared, tmp_path)
    assert [e.is_best for e in of_kind(events, EpochDone)] == [True, True, False, False, False]
    (test,) = of_kind(events, BestTested)
    assert test.best_epoch == 2
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000000020", "step-000000016", "step-000000008"]
    state = read_state(checkpoint_path(tmp_path, 8))["train_state"]
    assert state["best_epoch"] == 2 and state["epoch"] == 3

    monkeypatch.setattr(held_out, "evaluate", real)
    two_epochs = run(replace(SETTINGS, epochs=2), prepared, tmp_path / "two")
    trained = load_file(checkpoint_path(tmp_path, 8) / "model.safetensors")
    expected = load_file(checkpoint_path(tmp_path / "two", 8) / "model.safetensors")
    assert all(torch.equal(trained[key], expected[key]) for key in expected)
    assert len(of_kind(two_epochs, EpochDone)) == 2
    wanted = [test.metrics, *(test.floors[name] for name in BASELINES)]
    assert [users | of_points(points) for users, points in zip(tested[:3], tested[3:], strict=True)] == wanted


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
    metrics = of_kind(run(replace(SETTINGS, loss=loss, epochs=1), prepared, tmp_path), EpochDone)[0].metrics
    assert {m.removeprefix("train/") for m in metrics if m.startswith("train/")} == terms | {"loss", "users_per_s"}
    weights = {"ce_positive": 1.0, "ce_negative": loss.alpha, "contrastive": loss.beta}
    assert metrics["train/loss"] == pytest.approx(sum(weights[t] * metrics[f"train/{t}"] for t in terms))


def test_a_loss_that_is_not_finite_ends_the_run_and_its_users_are_kept(prepared: Path, tmp_path: Path) -> None:
    events = run(replace(SETTINGS, optimizer=OptimizerSettings(lr=1e30)), prepared, tmp_path)
    (diverged,) = of_kind(events, Diverged)
    assert not of_kind(events, BestTested)
    batch = json.loads(Path(diverged.batch).read_text())
    assert (batch["epoch"], batch["step"]) == (diverged.epoch, diverged.step)
    (users,) = batch["user_ids_of_ranks"]
    assert len(users) in (6, 8) and all(user.startswith("u") for user in users)
    assert len(batch["totals"]) == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full/non_finite").touch()
    events = run(replace(SETTINGS, optimizer=OptimizerSettings(lr=1e30)), prepared, tmp_path / "full")
    assert "cannot write" in of_kind(events, Warned)[0].text and of_kind(events, Diverged)


def test_the_file_of_those_users_is_whole_or_not_there(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(atomic, "sync_to_disk", full)
    events = run(replace(SETTINGS, optimizer=OptimizerSettings(lr=1e30)), prepared, tmp_path)
    assert any("non_finite" in event.text and "No space left" in event.text for event in of_kind(events, Warned))
    assert of_kind(events, Diverged) and not list((tmp_path / "non_finite").iterdir())


@pytest.mark.parametrize("bad", [(2,), (3, 4, 5), (4,), (1, 2, 3, 4)])
def test_steps_that_are_not_finite_are_left_out_and_counted(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    """The run ends like one without those steps: their losses are not counted."""
    real, calls = loop.train_step, iter(range(1, 100))

    def broken(model: object, encoders: torch.nn.Module, *rest: object) -> object:
        def to_nan(_module: object, _inputs: object, output: Tensor) -> Tensor:
            return output * torch.nan

        hook = encoders.main.register_forward_hook(to_nan) if next(calls) in bad else None  # type: ignore[union-attr]
        sums = real(model, encoders, *rest)  # type: ignore[arg-type]
        if hook is not None:
            hook.remove()
        return sums

    monkeypatch.setattr(loop, "train_step", broken)
    settings = replace(SETTINGS, epochs=2, train=TrainSettings(batch_size=8, non_finite="skip"))
    events = run(settings, prepared, tmp_path)
    assert len(of_kind(events, Warned)) == 1, "said once of steps in a row"
    assert len(list((tmp_path / "non_finite").iterdir())) == len(bad)
    skipped = [e.metrics["train/skipped_steps"] for e in of_kind(events, EpochDone)]
    assert skipped == [sum(n <= 4 for n in bad), sum(n > 4 for n in bad)]
    losses = [e.metrics["train/loss"] for e in of_kind(events, EpochDone)]
    assert [math.isnan(loss) for loss in losses] == [count == 4 for count in skipped], "an epoch without a finite step"
    assert all(math.isnan(loss) or loss > 0 for loss in losses) and of_kind(events, BestTested)


def test_skipping_for_ever_ends(prepared: Path, tmp_path: Path) -> None:
    train = TrainSettings(batch_size=1, non_finite="skip")
    settings = replace(SETTINGS, epochs=9, optimizer=OptimizerSettings(lr=1e30), train=train)
    (diverged,) = of_kind(run(settings, prepared, tmp_path), Diverged)
    assert diverged.skipped == loop.MAX_SKIPPED


def test_a_stop_is_heard_when_an_epoch_has_one_step(prepared: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, train=TrainSettings(batch_size=500), epochs=50)
    asked = iter(range(1, 100))
    events = run(settings, prepared, tmp_path, lambda: next(asked) >= 3)
    assert len(of_kind(events, EpochDone)) == 3 and len(of_kind(events, Stopped)) == 1
    assert read_state(checkpoints(tmp_path)[0])["train_state"]["epoch"] == 4
