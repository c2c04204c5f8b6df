"""Ray Tune's callback: shows a live table, and writes the record of each trial that ends."""

import shutil
import time
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pnfrec_dist.files.text import duration, score
from tune.records import Record, State, begin_record, best_of, ranked, trial_name, write_record
from tune.search import BROKEN, EPOCH, SILENCE
from tune.space import Point, described

SHOWN = 12
"""Rows of the live table."""
DIED = "its process died"
START_SECONDS = 60.0
"""Extra time for a trial's process to start, on top of the stall timeout."""


class Watch(Callback):
    """Watches the trials of one stage."""

    def __init__(
        self, title: str, directory: Path, epochs: int, ended: list[Record], planned: int, concurrent: int
    ) -> None:
        """epochs: most epochs of a trial; ended: trials of earlier commands; planned: trials to start now."""
        self.title, self.directory, self.most_epochs = title, directory, epochs
        self.records, self.done = list(ended), 0
        self.planned, self.concurrent = planned, concurrent
        self.seconds = 0.0
        """sum over the trials that ended in this command"""
        self.started: dict[str, float] = {}
        self.epochs: dict[str, list[dict[str, Any]]] = {}
        self.newest: dict[str, dict[str, Any]] = {}
        self.heard: dict[str, float] = {}
        """when a trial last reported progress"""
        self.broken: dict[str, str] = {}
        """why a trial's process ends too early"""
        self.points: dict[str, Point] = {}
        self.trials: dict[str, TuneTrial] = {}
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Watch":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune stores its callbacks to restore a search, which is not used here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._begun(trial)
        self._line(f"started   {described(self.points[trial.trial_id])}")
        self._refresh()

    def _begun(self, trial: TuneTrial) -> None:
        key = trial.trial_id
        self.trials[key], self.points[key] = trial, trial.config["point"]
        self.started[key], self.epochs[key] = time.monotonic(), []
        self.heard[key] = self.started[key] + START_SECONDS
        self.broken.pop(key, None)
        begin_record(self.directory / trial_name(self.points[key]), self.points[key])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        epochs, key = self.epochs[trial.trial_id], trial.trial_id
        self.newest[key], self.heard[key] = result, time.monotonic() - result[SILENCE]
        if result.get(BROKEN):
            self.broken[key] = result[BROKEN]
        if result[EPOCH] > (epochs[-1]["epoch"] if epochs else 0):
            epochs.append({"epoch": result[EPOCH], "score": result["own"], "seconds": result["seconds"]})
        self._refresh()

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        newest = self.newest[trial.trial_id]
        if newest["failed"]:
            self._ended(trial.trial_id, "failed", newest["failed"])
        elif newest["trained"] or newest[EPOCH] >= self.most_epochs:  # asked to stop after its last epoch
            self._ended(trial.trial_id, "finished", "")
        else:
            self._ended(trial.trial_id, "stopped", "the scheduler")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        if trial.trial_id not in self.points:  # failed before it started
            self._begun(trial)
        self._ended(trial.trial_id, "failed", self.broken.get(trial.trial_id, DIED))

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        key = trial.trial_id
        self._line(f"restarted {described(self.points[key])}: {self.broken.get(key, DIED)}")

    def running(self) -> list[Any]:
        """Handles of the actors of the trials that have not ended."""
        actors = (trial.temporary_state.ray_actor for trial in self.trials.values())
        return [actor for actor in actors if actor is not None]

    def kill_stuck(self, seconds: float) -> None:
        """Kills trials without progress for this long. Tune starts them again, up to --max-failures times."""
        for key, trial in self.trials.items():
            silence, actor = time.monotonic() - self.heard[key], trial.temporary_state.ray_actor
            if silence > seconds and actor is not None:
                self.broken[key] = f"no progress for {silence:.0f} s (--stall-timeout {seconds:g})"
                self._line(f"killed    {described(self.points[key])}: {self.broken[key]}")
                self.heard[key] = time.monotonic() + START_SECONDS
                ray.kill(actor)

    def cut_off(self) -> list[Record]:
        """Records of trials that the time budget stopped (Tune reports none). A later command resumes them."""
        names = {record.name for record in self.records}
        running = [key for key, point in self.points.items() if trial_name(point) not in names and self.epochs[key]]
        return [self._record(key, "stopped", "the time budget") for key in running]

    def _record(self, key: str, state: State, reason: str) -> Record:
        epochs = self.epochs[key]
        best = max(epochs, key=lambda entry: (entry["score"], -entry["epoch"]), default=None)
        seconds = self.newest.get(key, {}).get("trial_seconds", time.monotonic() - self.started[key])
        reached, epoch = (best["score"], best["epoch"]) if best else (None, None)
        return Record(self.points[key], state, reason, reached, epoch, epochs, seconds)

    def _ended(self, key: str, state: State, reason: str) -> None:
        record = self._record(key, state, reason)
        point, found, epoch, seconds = record.point, record.best_score, record.best_epoch, record.seconds
        self.done += 1
        self.seconds += seconds
        earlier = [kept for kept in self.records if kept.name != record.name]
        self.records = [*earlier, record]
        write_record(self.directory / record.name, record)
        now = best_of(self.records)
        drop_checkpoints(self.directory, earlier, now)  # not this trial's: its workers may still be writing
        star = "  *best" if now is not None and now.name == record.name else ""
        shown = f"{score(found)} in epoch {epoch}" if found is not None else "no score"
        why = f" ({reason})" if reason else ""
        self._line(f"{state:<9} {described(point)}: {shown}, {duration(seconds)}{why}{star}   {self._summary()}")
        self._refresh()

    def _summary(self) -> str:
        left = max(self.planned - self.done, 0)
        text = f"[{self.done}/{self.planned}"
        if self.done and left:
            text += f", about {duration(self.seconds / self.done * left / self.concurrent)} left"
        return text + "]"

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _refresh(self) -> None:
        if not self.console.is_terminal:
            return
        table = Table(title=f"{self.title}  {self._summary()}", title_justify="left")
        for head in ("trial", "state", "epoch", "validation NDCG_p@10", "time"):
            table.add_column(head, justify="left" if head in ("trial", "state") else "right")
        names = {record.name for record in self.records}
        rows = []
        for key, point in self.points.items():
            if trial_name(point) not in names:
                epoch, seconds = self.newest.get(key, {}).get(EPOCH, 0), time.monotonic() - self.started[key]
                best = max((entry["score"] for entry in self.epochs[key]), default=None)
                rows.append((described(point), "running", str(epoch), score(best), duration(seconds)))
        rows += [
            (described(r.point), r.state, str(r.best_epoch or "-"), score(r.best_score), duration(r.seconds))
            for r in ranked(self.records)
        ]
        for row in rows[:SHOWN]:
            table.add_row(*row)
        self.live.update(table, refresh=True)


def drop_checkpoints(directory: Path, records: list[Record], but: Record | None) -> None:
    """Deletes the checkpoints of all trials except `but`: they are not needed again."""
    for record in records:
        if but is None or record.name != but.name:
            shutil.rmtree(directory / record.name / "checkpoints", ignore_errors=True)
