"""The training loop of one rank: epochs, validation, early stopping, checkpoints, test.

Knows neither Ray nor MLflow: it reports events, and asks a hook whether to stop. If it is started again, it continues
from the newest complete checkpoint of its run directory.
"""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import TrainBatch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.loader import Loader
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.distributed import World, seed_step
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.baselines import BASELINES
from pnfrec_dist.evaluation.metrics import SELECTION_METRIC
from pnfrec_dist.files.atomic import write_json
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.model.encoder import compile_encoders
from pnfrec_dist.model.precision import Precision, fastest_precision, with_precision
from pnfrec_dist.training.allocator import keep_freed_memory
from pnfrec_dist.training.checkpoint import WEIGHTS, load_model, load_optimizer, read_state, stored_state
from pnfrec_dist.training.checkpoint_manager import Saver, checkpoint_path, newest_usable, precision_of
from pnfrec_dist.training.events import (
    BestTested,
    Diverged,
    Earlier,
    EpochDone,
    Event,
    Started,
    StepDone,
    Stopped,
    Trained,
    Warned,
    stored_epoch,
)
from pnfrec_dist.training.held_out import MODEL, HeldOut
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.memory_plan import plan_step
from pnfrec_dist.training.result import Result, write_result
from pnfrec_dist.training.state import TrainState
from pnfrec_dist.training.step import Requests, StepSums, train_step
from pnfrec_dist.training.step_graph import StepGraph, make_optimizer

Phase = Literal["train", "test", "both"]
"""train: no test users are read; test: only the test, of a trained run."""
MAX_SKIPPED = 100
"""After so many steps in a row that are not finite, the run ends even if it may skip them."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: for events, stop requests and progress."""

    report: Callable[[Event], None]
    should_stop: Callable[[], bool]
    progress: Callable[[float], None] = lambda share: None
    """called after each batch of an evaluation, with the share of its users that are done"""


class TrainLoop:
    """One rank's run: `train()` until the end, early stopping or a stop request; `test()` for the best epoch."""

    def __init__(self, settings: Settings, data: PreparedData, run_dir: Path, world: World, hooks: Hooks) -> None:
        self.data, self.run_dir, self.world, self.hooks = data, run_dir, world, hooks
        self.resumes_from = self._newest_checkpoint()
        self.settings = settings = with_precision(settings, self._precision(settings))
        self.train_data = data.train(settings.encoder.history)
        self.objective = Objective(settings)
        samples = self.objective.cross_entropy.samples_items
        sampler = ItemSampler(settings.sampled, data.item_counts()) if samples else None
        on_gpu = world.device.type == "cuda"
        if not on_gpu:
            keep_freed_memory()
        is_sharded = plan_step(settings, self.train_data, data.num_items, world.size, on_gpu=on_gpu).is_sharded
        self.model = build_model(data.num_items, settings, world if is_sharded else None).to(world.device)
        has_holdout = data.manifest.has_holdout
        self.held_out = HeldOut(settings, data, self.model, world, hooks.progress) if has_holdout else None
        self.optimizer = make_optimizer(self.model, settings, world)
        self.graph = StepGraph.of(self.model, self.optimizer, self.objective, world, self.train_data)
        slots = self.graph.batches.plan if self.graph is not None else None
        self.loader = Loader(self.train_data, settings, self.objective.parts, sampler, world, slots)
        self.state = TrainState()
        self.epochs: list[EpochDone] = []
        """all epochs of the run, including those before it was resumed"""
        attempt = world.gather(secrets.token_hex(4))[0]
        self.saver = Saver(run_dir, world, attempt, settings.checkpoint)
        self._restore()
        self.saved_steps, self.saved_at = self.state.total_steps, time.monotonic()
        if settings.train.compile:
            compile_encoders(self.model.encoders)
        self.encoders = world.wrap(self.model.encoders)

    def run(self, phase: Phase = "both") -> None:
        """Trains, then tests unless a stop was requested."""
        if phase == "test" or (self.train() and phase == "both"):
            self.test()

    def train(self) -> bool:
        """True if training is complete, False if it stopped before."""
        self._report(Earlier(list(self.epochs)))
        self._report(Started(self.state.epoch, self.state.step, self.world.size))
        while not self._finished():
            went_on, stop = self._train_epoch()
            if not went_on:
                return False
            if self.state.step == self._steps():
                self._end_epoch()
            if stop and not self._finished():
                self._stop()
                return False
        self.saver.wait()
        self._report_problems()
        best = checkpoint_path(self.run_dir, self.state.best_steps)
        self._report(Trained(self.state.best_epoch, str(best)))
        return True

    def _newest_checkpoint(self) -> Path | None:
        """The newest usable checkpoint of the run, the same on all ranks."""
        found = newest_usable(self.run_dir) if self.world.is_main else (None, [])
        path, problems = self.world.gather(found)[0]
        for problem in problems:
            self._report(Warned(f"{problem.partition(';')[0]}; not used"))
        return path

    def _precision(self, settings: Settings) -> Precision:
        """That of the settings, the same on all ranks; a run that goes on keeps its own if they say auto."""
        path = self.resumes_from if settings.train.precision == "auto" else None
        if path is not None and (kept := precision_of(stored_state(path))) is not None:
            return kept
        fastest = self.world.gather(fastest_precision(settings, on_gpu=self.world.device.type == "cuda"))
        return "float32" if "float32" in fastest else "bfloat16"

    def _restore(self) -> None:
        if (path := self.resumes_from) is not None:
            load_model(path, self.model)
            load_optimizer(path, self.model, self.optimizer)
            stored = stored_state(path)
            self.state = TrainState.from_mapping(stored["train_state"])
            self.epochs = [stored_epoch(entry) for entry in stored["epochs"]]

    def _steps(self) -> int:
        return num_steps(len(self.train_data), self.settings.train.batch_size)

    def _finished(self) -> bool:
        patience_over = self.state.epochs_without_improvement >= self.settings.train.patience
        return self.state.epoch > self.settings.epochs or patience_over

    def _train_epoch(self) -> tuple[bool, bool]:
        """Trains the rest of the epoch, or until a stop request: (whether training may go on, whether to stop)."""
        settings, state, world = self.settings, self.state, self.world
        steps = self._steps()
        self.model.train()
        before, started, users_done, stop = state.seconds, time.monotonic(), 0, False
        for users, batches in self.loader.epoch(state.epoch, state.step):
            seed_step(settings.seed, state.epoch, state.step, world.rank)
            requests = Requests(world.is_main and self.hooks.should_stop(), world.is_main and self._save_is_due())
            sums = self._step(batches, requests)
            users_done += users
            seconds = time.monotonic() - started
            state.seconds = before + seconds
            if sums.is_finite:
                state.count_step(sums.totals, sums.counts)
            elif not self._leave_out(sums):
                return False, False
            speed = users_done / seconds
            loss = self._losses()["train/loss"]
            self._report(StepDone(state.epoch, state.step, steps, loss, speed))
            stop = sums.requests.stop
            if stop:
                break
            if sums.requests.save and state.step < steps:
                self._save()
            self._report_problems()
        return True, stop

    def _step(self, batches: list[TrainBatch] | Tensor, requests: Requests) -> StepSums:
        if isinstance(batches, Tensor):
            assert self.graph is not None
            return self.graph.step(batches, requests)
        sums = train_step(self.model, self.encoders, self.optimizer, batches, self.objective, self.world, requests)
        if self.graph is not None:  # whose steps have gradients of their own
            self.optimizer.zero_grad(set_to_none=True)
        return sums

    def _leave_out(self, sums: StepSums) -> bool:
        """Writes the users of a step that is not finite to a file. Returns whether training goes on without it."""
        state, world = self.state, self.world
        order = epoch_order(self.settings.seed, state.epoch, len(self.train_data))
        users = global_batch(order, state.step, self.settings.train.batch_size)
        shares = [rank_share(users, rank, world.size) for rank in range(world.size)]
        file = self.run_dir / "non_finite" / f"epoch-{state.epoch:04d}-step-{state.step + 1:06d}.json"
        where = {"epoch": state.epoch, "step": state.step + 1}
        if world.is_main:
            totals = {self.objective.logged_names[name]: str(total) for name, total in sums.totals.items()}
            user_ids = self.data.user_ids("train")
            ids = [user_ids.take(share).to_pylist() for share in shares]
            content = {**where, "seed": self.settings.seed, "totals": totals, "user_ids_of_ranks": ids}
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, content, indent=1)
            except OSError as error:
                self._report(Warned(f"cannot write {file} ({error.strerror})"))
        state.skip_step()
        if self.settings.train.non_finite == "stop" or state.skipped_in_a_row >= MAX_SKIPPED:
            self.saver.wait()
            self._report(Diverged(**where, skipped=state.skipped_in_a_row, batch=str(file)))
            return False
        if state.skipped_in_a_row % 10 == 1:
            in_a_row = f" ({state.skipped_in_a_row} in a row)" if state.skipped_in_a_row > 1 else ""
            what = f"step {state.step} of epoch {state.epoch} is not finite and was skipped{in_a_row}"
            self._report(Warned(f"{what}; its users are in {file}"))
        return True

    def _losses(self) -> dict[str, float]:
        """Means over the epoch's finite steps; nan if there are none."""
        losses = self.objective.means(self.state.loss_totals, self.state.loss_counts)
        return losses if self.state.skipped < self.state.step else dict.fromkeys(losses, math.nan)

    def _end_epoch(self) -> None:
        """Validation, the checkpoint of this epoch, and the move to the next. Without a holdout, the last is best."""
        state = self.state
        validation = self.held_out.validate() if self.held_out is not None else {}
        epoch, seconds = state.epoch, state.seconds
        metrics = self._losses()
        metrics["train/users_per_s"] = len(self.train_data) / max(seconds, 1e-9)
        if self.settings.train.non_finite == "skip":
            metrics["train/skipped_steps"] = float(state.skipped)
        metrics.update({f"val/{name}": value for name, value in validation.items()})
        score = validation.get(SELECTION_METRIC, state.best_score)
        is_best = self.held_out is None or score > state.best_score
        if is_best:
            state.best_score, state.best_epoch, state.best_steps = score, epoch, state.total_steps
        state.start_epoch(epoch + 1)
        done = EpochDone(epoch, metrics, seconds, is_best)
        self.epochs.append(done)
        self._save()
        self._report(done)

    def _stop(self) -> None:
        """Leaves a checkpoint from which the run can resume."""
        if self.saved_steps != self.state.total_steps:
            self._save()
        self.saver.wait()
        self._report_problems()
        self._report(Stopped(self.state.epoch, self.state.step))

    def test(self) -> None:
        """Evaluates the model of the best epoch, and the baselines, on the test users. Without a holdout, there are
        none, and the result has no metrics."""
        self._report(Earlier(list(self.epochs)))
        best = checkpoint_path(self.run_dir, self.state.best_steps)
        if problem := self.world.gather(_problem(best) if self.world.is_main else "")[0]:
            way_out = "restore it, or make room, and run the same command again"
            raise InputError(
                f"the checkpoint of the best epoch, {self.state.best_epoch}, is lost ({problem}); {way_out}"
            )
        load_model(best, self.model)
        held_out = self.held_out
        tested = held_out.test() if held_out is not None else None
        result = Result(
            settings=to_mapping(self.settings),
            data_digest=self.data.manifest.digest,
            num_items=self.data.num_items,
            num_workers=self.world.size,
            epochs=list(self.epochs),
            best_epoch=self.state.best_epoch,
            checkpoint=best.relative_to(self.run_dir).as_posix(),
            test=tested.metrics(MODEL) if tested is not None else {},
            floors={name: tested.metrics(name) for name in BASELINES} if tested is not None else {},
            weights=held_out.chosen_weights() if held_out is not None else {},
        )
        if self.world.is_main:
            try:
                write_result(self.run_dir, result, tested)
            except OSError as error:
                self._report(Warned(f"cannot write the result to {self.run_dir} ({error.strerror})"))
        self._report(BestTested(result.test, result.floors, self.state.best_epoch, str(best), result.weights))

    def _save_is_due(self) -> bool:
        """Whether to save, by steps or minutes since the last save. Not while a save still runs."""
        every = self.settings.checkpoint
        by_steps = every.every_steps and self.state.total_steps + 1 - self.saved_steps >= every.every_steps
        by_time = every.every_minutes and time.monotonic() - self.saved_at >= 60 * every.every_minutes
        return bool(by_steps or by_time) and not self.saver.is_busy

    def _save(self) -> None:
        state = {
            "train_state": self.state.to_mapping(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "settings": to_mapping(self.settings),
            "data_digest": self.data.manifest.digest,
            "num_items": self.data.num_items,
            "num_workers": self.world.size,
            WEIGHTS: asdict(self.model.encoders.weights),
        }
        self.saver.save(self.model, self.optimizer, state, self.state.total_steps, self.state.best_steps)
        self.saved_steps, self.saved_at = self.state.total_steps, time.monotonic()

    def _report(self, event: Event) -> None:
        if self.world.is_main:
            self.hooks.report(event)

    def _report_problems(self) -> None:
        """Reports problems of saving; each rank reports its own."""
        for text in self.saver.problems():
            self.hooks.report(Warned(text))


def _problem(checkpoint: Path) -> str:
    """What is wrong with the checkpoint, or ""."""
    try:
        read_state(checkpoint)
    except InputError as error:
        return str(error)
    return ""
