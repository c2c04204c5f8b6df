"""The checkpoints of a run: written in the background, found for resuming, old ones deleted.

runs/<run>/checkpoints/step-<steps done in all epochs>. A checkpoint that is being written is a draft,
.step-...<attempt>.writing. An attempt is one start of the workers, so a lost attempt cannot mix with a new one.
"""

import contextlib
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.optim import Optimizer

from pnfrec_dist.config.settings import CheckpointSettings, Settings
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import draft_of
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.precision import Precision, with_precision
from pnfrec_dist.training.checkpoint import (
    Files,
    commit,
    copied,
    own_tensors,
    parts_written,
    read_state,
    stored_state,
    write_part,
)

POLL_SECONDS = 0.02
PART_SECONDS = 600.0
"""How long rank 0 waits for the others' parts after it has written its own."""


def checkpoint_path(run_dir: Path, total_steps: int) -> Path:
    return run_dir / "checkpoints" / f"step-{total_steps:09d}"


def is_checkpoint_name(name: str) -> bool:
    return re.fullmatch(r"step-\d{9,}", name) is not None


def checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoints, complete or damaged, newest first. Ignores other names, such as step-000000008.bak."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if is_checkpoint_name(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def require_usable(path: Path) -> None:
    """Raises InputError if a checkpoint, or that of its best epoch (needed at the end of the run), is not complete."""
    best = read_state(path)["train_state"]["best_steps"]
    if best:
        read_state(checkpoint_path(path.parents[1], best))


def newest_usable(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint from which the run can resume, and the problems of newer ones."""
    problems = []
    for path in checkpoints(run_dir):
        try:
            require_usable(path)
        except InputError as error:
            problem = str(error)
            problems.append(problem if path.name in problem else f"{path} needs that of its best epoch: {problem}")
        else:
            return path, problems
    return None, problems


def with_kept_precision(settings: Settings, run_dir: Path) -> Settings:
    """The settings with the precision that the run began with, if they say auto and it has a checkpoint; else as they
    are. For plans: the checkpoint is not checked."""
    newest = next(iter(checkpoints(run_dir)), None)
    if newest is None or settings.train.precision != "auto":
        return settings
    with contextlib.suppress(InputError):
        kept = precision_of(stored_state(newest))
        return settings if kept is None else with_precision(settings, kept)
    return settings


def precision_of(state: dict[str, Any]) -> Precision | None:
    """train.precision of a checkpoint's training; versions before the setting had float32. None: a warm start has made
    no step yet, and chooses its own."""
    stored = state["settings"]["train"].get("precision", "float32")
    return None if stored == "auto" else stored


class Saver:
    """Saves checkpoints on one rank. All ranks call save() after the same steps; only rank 0 waits for the others."""

    def __init__(self, run_dir: Path, world: World, attempt: str, settings: CheckpointSettings) -> None:
        self.run_dir, self.world, self.attempt, self.settings = run_dir, world, attempt, settings
        self._thread: threading.Thread | None = None
        self._problems: list[str] = []
        self._writers = 1
        """number of ranks that write something"""
        if world.is_main:
            self._remove_drafts()

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def save(self, model: PNFRec, optimizer: Optimizer, state: dict[str, Any], total_steps: int, best: int) -> None:
        """Waits for the previous save, then starts a new one. best: steps of the best checkpoint, which is kept."""
        self.wait()
        files, state = own_tensors(model, optimizer, self.world), {"item_rows": model.item_table.bounds, **state}
        self._writers = self.world.size if model.item_table.is_sharded else 1
        target = checkpoint_path(self.run_dir, total_steps)
        if not files and not self.world.is_main:
            return
        if self.world.is_main:  # at this point, no rank can be in a later save
            self._remove_drafts(but=self._draft(target))
        if self.settings.background:
            arguments = (copied(files), state, target, best)
            self._thread = threading.Thread(target=self._write, args=arguments, name="saver", daemon=True)
            self._thread.start()
        else:
            self._write(files, state, target, best)

    def wait(self) -> None:
        """Returns when no write is running."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def problems(self) -> list[str]:
        """Problems since the last call."""
        found, self._problems = self._problems, []
        return found

    def _write(self, files: Files, state: dict[str, Any], target: Path, best: int) -> None:
        draft = self._draft(target)
        failed = draft / "failed"
        try:
            write_part(draft, self.world.rank, files, state if self.world.is_main else None)
            if self.world.is_main:
                self._wait_for_parts(draft, failed)
                commit(draft, target, self._writers)
                self._thin_out(best)
        except (OSError, SafetensorError) as error:
            if self.world.is_main:
                shutil.rmtree(draft, ignore_errors=True)
            elif not draft.exists():  # rank 0 gave up and reports why
                return
            else:  # makes room for the note to rank 0, then writes it
                for name in files:
                    (draft / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    failed.touch()
            reason = getattr(error, "strerror", None) or error
            self._problems.append(f"rank {self.world.rank} could not write {target} ({reason}); earlier ones are kept")

    def _draft(self, path: Path) -> Path:
        return draft_of(path, f"{self.attempt}.writing")

    def _wait_for_parts(self, draft: Path, failed: Path) -> None:
        deadline = time.monotonic() + PART_SECONDS
        while not parts_written(draft, self._writers):
            if failed.exists():
                raise OSError("another rank could not write its part")
            if time.monotonic() > deadline:
                raise OSError(f"a rank's part was not written within {PART_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _remove_drafts(self, but: Path | None = None) -> None:
        """Removes drafts of lost attempts, and of saves that rank 0 gave up while others were writing; also damaged
        checkpoints that a new one was replacing."""
        for draft in (self.run_dir / "checkpoints").glob(".step-*"):
            if draft != but:
                shutil.rmtree(draft, ignore_errors=True)

    def _thin_out(self, best: int) -> None:
        """Keeps the newest usable checkpoints, and those of their best epochs. Usable: its best epoch was saved."""
        stay, usable = {checkpoint_path(self.run_dir, best)}, 0
        for path in checkpoints(self.run_dir):
            if usable < self.settings.keep:
                with contextlib.suppress(InputError, KeyError, TypeError):
                    best_steps = stored_state(path)["train_state"]["best_steps"]
                    needed = {checkpoint_path(self.run_dir, best_steps)} if best_steps else set()
                    usable += all(checkpoint.exists() for checkpoint in needed)
                    stay |= {path, *needed}
        for path in checkpoints(self.run_dir):
            if path not in stay:  # renamed first, so that a half-removed one does not look damaged
                draft = self._draft(path)
                with contextlib.suppress(OSError):
                    path.rename(draft)
                shutil.rmtree(draft, ignore_errors=True)
