"""One rank, interrupted at random moments: no user is skipped or read twice, checkpoints are complete or absent."""

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import with_torch
from helpers.waiting import wait_until

from pnfrec_dist.config.settings import CheckpointSettings, EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data import loader
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.training import loop
from pnfrec_dist.training.checkpoint_manager import checkpoints, newest_usable
from pnfrec_dist.training.events import Event, StepDone
from pnfrec_dist.training.loop import Hooks, TrainLoop

Soak = Callable[[str, str, str], None]
USERS, BATCH = 60, 8
STEPS = 8
SETTINGS = Settings(
    epochs=6,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=BATCH, patience=99),
    checkpoint=CheckpointSettings(every_steps=3),
)


def trials(few: int, many: int) -> list[Any]:
    return [few, pytest.param(many, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    return with_torch()


def keep_ledger(prepared: Path, run_dir: Path, ledger: Path, kill_at: int) -> None:
    """Trains and records the users of each finished step. Kills itself at the report of step `kill_at`."""
    torch.set_num_threads(1)
    rows_of: dict[int, list[int]] = {}
    real_batch, real_step, read, steps = loader.train_batch, loop.train_step, [], 0

    def train_batch(data: Any, rows: Any, *rest: Any) -> Any:
        batch = real_batch(data, rows, *rest)
        rows_of[id(batch)] = rows.tolist()
        return batch

    def train_step(model: Any, encoders: Any, optimizer: Any, batches: Any, *rest: Any) -> Any:
        read[:] = [row for batch in batches for row in rows_of[id(batch)]]
        return real_step(model, encoders, optimizer, batches, *rest)

    loader.train_batch, loop.train_step = train_batch, train_step

    def report(event: Event) -> None:
        nonlocal steps
        if isinstance(event, StepDone):
            with ledger.open("a") as file:
                file.write(json.dumps([event.epoch, event.step, read]) + "\n")
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    TrainLoop(SETTINGS, open_prepared(prepared), run_dir, World(), Hooks(report, lambda: False)).run()


@pytest.mark.parametrize("interruptions", trials(1, 50))
def test_every_user_is_read_once_an_epoch(
    prepared_writer: Callable[..., Path], tmp_path: Path, forks: ForkServerContext, interruptions: int, soak: Soak
) -> None:
    """Runs of 6 epochs, killed after 1 to 20 steps each time until they end, until there are enough interruptions."""
    rng, prepared = random.Random(interruptions), prepared_writer(tmp_path / "prepared" / "tiny", users=USERS)
    done = missing = repeated = number = 0
    while done < interruptions:
        number += 1
        ledger, killed = tmp_path / f"ledger-{number}", True
        while killed:
            arguments = (prepared, tmp_path / f"run-{number}", ledger, rng.randint(1, 20))
            process = forks.Process(target=keep_ledger, args=arguments)
            process.start()
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            killed = process.exitcode != 0
            done += killed
        read: dict[tuple[int, int], list[int]] = {}
        for line in ledger.read_text().splitlines():
            epoch, step, rows = json.loads(line)
            assert read.setdefault((epoch, step), rows) == rows, "a step that is done again reads the same users"
        assert sorted(read) == [(e, s) for e in range(1, SETTINGS.epochs + 1) for s in range(1, STEPS + 1)]
        for epoch in range(1, SETTINGS.epochs + 1):
            rows = [row for (e, _), step_rows in read.items() if e == epoch for row in step_rows]
            missing += USERS - len(set(rows))
            repeated += len(rows) - len(set(rows))
    assert (missing, repeated) == (0, 0)
    soak(f"users over {done} interruptions", f"{missing} missing, {repeated} repeated", "0, 0")


def save_all_the_time(prepared: Path, run_dir: Path) -> None:
    torch.set_num_threads(1)
    settings = replace(SETTINGS, epochs=500, checkpoint=CheckpointSettings(every_steps=1, keep=3))
    TrainLoop(settings, open_prepared(prepared), run_dir, World(), Hooks(lambda _: None, lambda: False)).run()


def has_gone_on(run_dir: Path, checkpoints_before: int, steps_before: int) -> bool:
    steps = [int(path.name[5:]) for path in checkpoints(run_dir)]
    return len(steps) > checkpoints_before or max(steps, default=-1) > steps_before + 2


def is_writing(run_dir: Path, files: int) -> bool:
    """Whether there is a draft with at least this many files."""
    for draft in (run_dir / "checkpoints").glob(".step-*.writing"):
        with contextlib.suppress(FileNotFoundError):  # it has become a checkpoint
            return len(list(draft.iterdir())) >= files
    return False


@pytest.mark.parametrize("kills", trials(3, 100))
def test_a_kill_during_a_save_leaves_the_newest_whole_one(
    prepared: Path, tmp_path: Path, forks: ForkServerContext, kills: int, soak: Soak
) -> None:
    """Killed while there is a draft. All checkpoints are complete, and training continues from the newest one."""
    rng, run_dir, good, before = random.Random(kills), tmp_path / "run", 0, -1
    for _ in range(kills):
        process = forks.Process(target=save_all_the_time, args=(prepared, run_dir))
        process.start()
        wait_until(partial(has_gone_on, run_dir, len(checkpoints(run_dir)), before))
        wait_until(partial(is_writing, run_dir, rng.randrange(4)), pause=0)
        process.kill()
        process.join(60)
        path, problems = newest_usable(run_dir)
        found = checkpoints(run_dir)
        assert path is not None and not problems and path == found[0], problems
        steps = int(path.name[5:])
        assert steps > before
        before, good = steps, good + 1
    soak(f"kills during a save, {kills}", f"{good}/{kills} go on from the newest whole checkpoint", f"{kills}/{kills}")
