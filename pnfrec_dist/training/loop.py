"""The training loop of one rank: epochs, validation, early stopping, checkpoints, test.

Knows neither Ray nor MLflow: what happens is reported as events, and a question tells whether to stop.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pnfrec_dist.config import Settings
from pnfrec_dist.data.epoch_plan import num_steps
from pnfrec_dist.data.feed import epoch_batches
from pnfrec_dist.data.prepared import HoldoutData, PreparedData
from pnfrec_dist.data.sampler import ItemSampler
from pnfrec_dist.distributed import World, initial_generator, seed_step
from pnfrec_dist.evaluation import evaluate, model_scores, popularity_scores
from pnfrec_dist.losses.objective import TERMS, term_weights
from pnfrec_dist.mappings import to_mapping
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.encoder import compile_encoders
from pnfrec_dist.training.checkpoint import load_model, load_optimizer, read_state, save_checkpoint
from pnfrec_dist.training.plan import plan_step
from pnfrec_dist.training.state import TrainState
from pnfrec_dist.training.step import train_step

SELECTION_METRIC = "ndcg_p_at_10"

Event = dict[str, Any]
"""{"kind": "step" | "epoch" | "stopped" | "diverged" | "test", ...}: plain values, from rank 0 alone."""


@dataclass(frozen=True)
class Hooks:
    """The loop's two ways to the outside."""

    report: Callable[[Event], None]
    should_stop: Callable[[], bool]


def build_model(num_items: int, settings: Settings, shards: World | None = None) -> PNFRec:
    """The model with its initial weights, the same for the same settings.seed, whoever holds the item table."""
    return PNFRec(num_items, settings.encoder, settings.loss, initial_generator(settings.seed), shards)


class TrainLoop:
    """One rank's run. `run()` trains until the end, early stopping or a stop request, then tests the best epoch."""

    def __init__(self, settings: Settings, data: PreparedData, run_dir: Path, world: World, hooks: Hooks) -> None:
        self.settings, self.data, self.run_dir, self.world, self.hooks = settings, data, run_dir, world, hooks
        self.train_data = data.train()
        self.validation = data.holdout("validation")
        samples = settings.loss.cross_entropy in ("sampled_softmax", "gbce")
        self.sampler = ItemSampler(settings.sampled, data.item_counts()) if samples else None
        on_gpu = world.device.type == "cuda"
        is_sharded = plan_step(settings, self.train_data, data.num_items, world.size, on_gpu=on_gpu).is_sharded
        self.model = build_model(data.num_items, settings, world if is_sharded else None).to(world.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.optimizer.lr, fused=True)
        self.state = TrainState()
        if settings.resume:
            stored = read_state(Path(settings.resume))
            load_model(Path(settings.resume), self.model)
            load_optimizer(Path(settings.resume), self.model, self.optimizer)
            self.state = TrainState(**stored["train_state"])
        if settings.train.compile:
            compile_encoders(self.model.encoders)
        self.encoders = world.wrap(self.model.encoders)

    def run(self) -> None:
        while not self._finished():
            stop = self._train_epoch()
            losses = _mean_loss(
                torch.tensor(self.state.loss_totals), torch.tensor(self.state.loss_counts), self.settings
            )
            if not math.isfinite(losses["train/loss"]):
                self._report({"kind": "diverged", "epoch": self.state.epoch, "loss": losses["train/loss"]})
                return
            if self.state.step == self._steps():
                self._end_epoch(losses)
            if stop and not self._finished():
                self._save("stopped")
                self._report({"kind": "stopped", "checkpoint": str(self._checkpoint("stopped"))})
                return
        self._test()

    def _steps(self) -> int:
        return num_steps(len(self.train_data), self.settings.train.batch_size)

    def _finished(self) -> bool:
        patience_over = self.state.epochs_without_improvement >= self.settings.train.patience
        return self.state.epoch > self.settings.epochs or patience_over

    def _train_epoch(self) -> bool:
        """Trains the rest of the epoch in progress, or until a stop is asked for; whether it was."""
        settings, state, world = self.settings, self.state, self.world
        steps = self._steps()
        totals = torch.zeros(len(TERMS), dtype=torch.float64)
        counts = torch.zeros(len(TERMS), dtype=torch.float64)
        self.model.train()
        started, users_done, stop = time.monotonic(), 0, False
        for users, batches in epoch_batches(self.train_data, settings, self.sampler, world, state.epoch, state.step):
            seed_step(settings.seed, state.epoch, state.step, world.rank)
            asked = world.is_main and self.hooks.should_stop()
            sums = train_step(self.model, self.encoders, self.optimizer, batches, settings, world, asked)
            totals += sums.totals.double().cpu()
            counts += sums.counts.double().cpu()
            stop = sums.stop
            state.step += 1
            users_done += users
            speed = users_done / (time.monotonic() - started)
            # Until the epoch ends, the loss shown is rank 0's share of the sums, scaled to all ranks.
            loss = _mean_loss(totals * world.size, counts, settings)["train/loss"]
            self._report(
                {
                    "kind": "step",
                    "epoch": state.epoch,
                    "step": state.step,
                    "steps": steps,
                    "loss": loss,
                    "users_per_s": speed,
                }
            )
            if stop:
                break
        state.seconds += time.monotonic() - started
        totals = world.sum(totals.to(world.device)).cpu()
        state.loss_totals = [a + b for a, b in zip(state.loss_totals, totals.tolist(), strict=True)]
        state.loss_counts = [a + b for a, b in zip(state.loss_counts, counts.tolist(), strict=True)]
        return stop

    def _end_epoch(self, losses: dict[str, float]) -> None:
        """Validation, the checkpoint of this epoch, and the move to the next."""
        state = self.state
        validation = self._evaluate(self.validation)
        epoch, score, seconds = state.epoch, validation[SELECTION_METRIC], state.seconds
        metrics = dict(losses)
        metrics["train/users_per_s"] = len(self.train_data) / max(seconds, 1e-9)
        metrics.update({f"val/{name}": value for name, value in validation.items()})
        is_best = score > state.best_score
        outdated = [self._epoch_checkpoint(epoch - 1)] if epoch - 1 != state.best_epoch else []
        if is_best:
            outdated.append(self._epoch_checkpoint(state.best_epoch))
            state.best_score, state.best_epoch = score, epoch
        state.start_epoch(epoch + 1)
        self._save(self._epoch_checkpoint(epoch).name)
        if self.world.is_main:
            for old in [*outdated, self._checkpoint("stopped")]:
                if old != self._epoch_checkpoint(epoch):
                    shutil.rmtree(old, ignore_errors=True)
        self._report({"kind": "epoch", "epoch": epoch, "metrics": metrics, "seconds": seconds, "is_best": is_best})

    def _test(self) -> None:
        """Restores the best epoch and evaluates it, and the popularity baseline, on the test users."""
        best = self._epoch_checkpoint(self.state.best_epoch)
        read_state(best)
        load_model(best, self.model)
        test = self.data.holdout("test")
        metrics = self._evaluate(test)
        popularity = popularity_scores(self.data.item_counts(), self.world)
        baseline = evaluate(popularity, test, self.data.num_items, self.settings.evaluation, self.world)
        self._report(
            {
                "kind": "test",
                "metrics": metrics,
                "popularity": baseline,
                "best_epoch": self.state.best_epoch,
                "checkpoint": str(best),
            }
        )

    def _evaluate(self, holdout: HoldoutData) -> dict[str, float]:
        self.model.eval()
        scores, share_catalog = model_scores(self.model, holdout, self.world), self.model.item_table.is_sharded
        return evaluate(
            scores,
            holdout,
            self.data.num_items,
            self.settings.evaluation,
            self.world,
            share_catalog=share_catalog,
        )

    def _save(self, name: str) -> None:
        state = {
            "train_state": self.state.to_mapping(),
            "settings": to_mapping(self.settings),
            "data_digest": self.data.manifest.digest,
            "num_items": self.data.num_items,
            "num_workers": self.world.size,
        }
        save_checkpoint(self._checkpoint(name), self.model, self.optimizer, state, self.world)

    def _report(self, event: Event) -> None:
        if self.world.is_main:
            self.hooks.report(event)

    def _checkpoint(self, name: str) -> Path:
        return self.run_dir / "checkpoints" / name

    def _epoch_checkpoint(self, epoch: int) -> Path:
        return epoch_checkpoint(self.run_dir, epoch)


def epoch_checkpoint(run_dir: Path, epoch: int) -> Path:
    """Where a run keeps the checkpoint written after an epoch."""
    return run_dir / "checkpoints" / f"epoch-{epoch:04d}"


def _mean_loss(totals: torch.Tensor, counts: torch.Tensor, settings: Settings) -> dict[str, float]:
    """train/loss and its terms, as means over real targets; terms that the model lacks are left out."""
    means = totals / counts.clamp(min=1)
    weights = term_weights(settings.loss)
    used = {f"train/{term}": float(mean) for term, mean, w in zip(TERMS, means, weights, strict=True) if w > 0}
    return {"train/loss": float((weights * means).sum()), **used}
