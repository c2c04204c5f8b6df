"""Saving in the background, alone and by several ranks."""

import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import spawn
from helpers.waiting import wait_until

from benchmarks.shapes import ITEMS, ml1m_like
from pnfrec_dist.config.settings import CheckpointSettings, EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.training import checkpoint_manager
from pnfrec_dist.training.checkpoint import load_model, read_state
from pnfrec_dist.training.checkpoint_manager import Saver, checkpoint_path, checkpoints, newest_usable
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, train_step


def fresh(shards: World | None = None) -> tuple[PNFRec, torch.optim.Adam]:
    encoder = EncoderSettings(hidden_size=4, num_blocks=1, max_length=3)
    model = PNFRec(10, encoder, torch.Generator().manual_seed(0), with_negative=True, shards=shards)
    return model, torch.optim.Adam(model.parameters())


def state(step: int, best: int = 0) -> dict[str, Any]:
    return {"train_state": {"total_steps": step, "best_steps": best}}


def test_training_may_go_on_while_the_copy_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is delayed until the weights have changed. The checkpoint has the weights at the time of save()."""
    model, optimizer = fresh()
    before = model.item_table.weight.detach().clone()
    go_on, real = threading.Event(), checkpoint_manager.write_part

    def held_up(*args: Any) -> None:
        assert go_on.wait(30)
        real(*args)

    monkeypatch.setattr(checkpoint_manager, "write_part", held_up)
    saver = Saver(tmp_path, World(), "a", CheckpointSettings())
    saver.save(model, optimizer, state(1), 1, 0)
    assert saver.is_busy and not checkpoints(tmp_path)
    with torch.no_grad():
        model.item_table.weight.add_(1)
    go_on.set()
    saver.wait()
    assert not saver.is_busy and not saver.problems()
    other, _ = fresh()
    load_model(checkpoint_path(tmp_path, 1), other)
    assert torch.equal(other.item_table.weight, before)


def test_what_another_attempt_left_half_written_goes(tmp_path: Path) -> None:
    draft = tmp_path / "checkpoints/.step-000000003.dead.writing"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half")
    replaced = tmp_path / "checkpoints/.step-000000002.old"
    replaced.mkdir()
    Saver(tmp_path, World(), "a", CheckpointSettings())
    assert not draft.exists() and not replaced.exists() and newest_usable(tmp_path) == (None, [])


def test_the_newest_stay_and_the_best_epochs_they_know(tmp_path: Path) -> None:
    """Best epochs end at steps 2, 5 and 8. The checkpoint of step 5 is lost, so those of 6 and 7 are not usable."""
    model, optimizer = fresh()
    saver = Saver(tmp_path, World(), "a", CheckpointSettings(keep=2))
    left = {}
    for step, best in ((1, 0), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (7, 5), (8, 8), (9, 8)):
        saver.save(model, optimizer, state(step, best), step, best)
        saver.wait()
        if step == 5:
            shutil.rmtree(checkpoint_path(tmp_path, 5))
        left[step] = [int(path.name[5:]) for path in checkpoints(tmp_path)]
    assert left[4] == [4, 3, 2]
    assert left[7] == [7, 6, 4, 2]
    assert left[9] == [9, 8]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("items", "users", "steps", "rounds", "every"),
    [(ITEMS, 500, 1, 30, "20 steps"), (1_000_000, 20, 3, 3, "10 minutes")],
)
def test_what_a_checkpoint_costs(
    items: int, users: int, steps: int, rounds: int, every: str, tmp_path: Path, soak: Callable[[str, str, str], None]
) -> None:
    """d = 64, two cores: medians of alternating steps with and without a save."""
    settings = Settings(loss=LossSettings(0.45, 0.25))
    model = build_model(items, settings)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    saver = Saver(tmp_path, World(), "a", CheckpointSettings())
    batch = train_batch(
        ml1m_like(items=items), np.arange(users), settings.encoder, needed_parts(settings.loss), torch.device("cpu")
    )

    def seconds(total_steps: int) -> tuple[float, float]:
        """(seconds in total, seconds in save() before training goes on)."""
        started = time.monotonic()
        if total_steps:
            saver.save(model, optimizer, state(total_steps), total_steps, 0)
        saved = time.monotonic()
        for _ in range(steps):
            train_step(model, model.encoders, optimizer, [batch], Objective(settings), World(), Requests())
        assert not saver.is_busy  # otherwise the next steps would be slower
        return time.monotonic() - started, saved - started

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds(0)
        rows = [(seconds(0)[0], *seconds(round_ + 1)) for round_ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
    plain, saved, copy = (statistics.median(column) for column in zip(*rows, strict=True))
    between = 20 * plain / steps if every == "20 steps" else 600.0
    found = f"{(saved - plain) / between:.2%} ({saved - plain:.2f} s longer, {copy:.3f} s of it the copy)"
    soak(f"a checkpoint every {every}, {items:,} items", found, "< 2 % of step time")
    assert not saver.problems()


def save_with_a_full_disk(world: World, run_dir: str, full_rank: int) -> None:
    """Step 1 is saved, step 2 fails on one rank, step 3 is saved again."""
    saver = Saver(Path(run_dir), world, "a", CheckpointSettings())
    model, optimizer = fresh(world)
    real = checkpoint_manager.write_part
    draft_2, tried = Path(run_dir) / "checkpoints/.step-000000002.a.writing", Path(run_dir) / "tried"

    def full(draft: Path, rank: int, files: Any, content: Any) -> None:
        draft.mkdir(parents=True, exist_ok=True)
        tried.touch()
        raise OSError(28, "No space left on device")

    def late(draft: Path, rank: int, files: Any, content: Any) -> None:
        """Starts when rank 0 has given up and removed the draft."""
        wait_until(lambda: tried.exists() and not draft.exists())
        real(draft, rank, files, content)

    other = late if full_rank == 0 else real
    problems = {}
    for step in (1, 2, 3):
        checkpoint_manager.write_part = real if step != 2 else full if world.rank == full_rank else other
        saver.save(model, optimizer, state(step), step, 0)
        saver.wait()
        problems[step] = saver.problems()
        world.barrier()
        assert step != 2 or draft_2.exists() == (full_rank == 0), "what the late rank wrote lies there"
        world.barrier()
    assert not problems[1] and not problems[3]
    if world.rank > full_rank:
        assert not problems[2]
        return
    (problem,) = problems[2]
    said = "No space left on device" if world.rank == full_rank else "another rank could not write its part"
    assert said in problem and "step-000000002" in problem


@pytest.mark.parametrize("full_rank", [0, 1])
def test_a_checkpoint_is_of_all_ranks_or_not_there(tmp_path: Path, full_rank: int) -> None:
    spawn(2, save_with_a_full_disk, str(tmp_path), full_rank)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000003", "step-000000001"]
    assert len(read_state(checkpoint_path(tmp_path, 3))["item_rows"]) == 3
    assert not list((tmp_path / "checkpoints").glob(".*"))
