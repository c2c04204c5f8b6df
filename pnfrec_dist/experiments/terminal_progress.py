"""Shows the progress of a training: a bar on a terminal, lines in a log file; and result tables."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pnfrec_dist.evaluation.metrics import (
    HEADLINE_CUTOFF,
    HEADLINE_METRICS,
    LOGGED_SELECTION,
    POINTS,
    metric_title,
)
from pnfrec_dist.files.tables import markdown_table, text_table
from pnfrec_dist.files.text import counted, duration, score
from pnfrec_dist.training.events import Alive, EpochDone, Event, Started, StepDone, Warned, WorkersFailed

HEADLINE = tuple((metric_title(name), name) for name in HEADLINE_METRICS)
OF_POINTS = tuple(f"{POINTS}ndcg_{group}_at_{HEADLINE_CUTOFF}" for group in ("p", "n", "delta"))
HIT = f"hr_p_at_{HEADLINE_CUTOFF}"
LINE_SECONDS = 30.0


class ProgressReport:
    """Shows step and epoch events. A long epoch in a log gets a line every 30 seconds."""

    def __init__(self, max_epochs: int, first_epoch: int, num_workers: int, file: IO[str] | None = None) -> None:
        """file: where it writes; None: standard output."""
        self.max_epochs, self.first_epoch, self.num_workers = max_epochs, first_epoch, num_workers
        self.console = Console(file=file, highlight=False, soft_wrap=True)
        self.first: tuple[float, int] | None = None
        self.starts = 0
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("starting workers", total=None, state="")

    def __enter__(self) -> "ProgressReport":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def show(self, event: Event) -> None:
        """Shows an event, if it is of interest to a reader."""
        if isinstance(event, StepDone):
            self.step(event)
        elif isinstance(event, Alive):
            self.evaluation(event.share)
        elif isinstance(event, EpochDone):
            self.epoch(event)
        elif isinstance(event, Warned):
            self.line(f"warning: {event.text}")
        elif isinstance(event, WorkersFailed):
            ranks = "; ".join(f"worker {rank}: {reason}" for rank, reason in event.reasons.items())
            self.line(f"warning: workers failed ({ranks or 'no reason given'})")
        elif isinstance(event, Started):
            self.started(event)

    def started(self, event: Started) -> None:
        """Shown if it is not the first start, or not the planned number of workers."""
        if self.starts or event.workers != self.num_workers:
            again = "again " if self.starts else ""
            where = f"epoch {event.epoch} after step {event.step}"
            self.line(f"workers run {again}({event.workers} of {self.num_workers}), from {where}")
        self.starts += 1

    def step(self, event: StepDone) -> None:
        now = time.monotonic()
        done = (event.epoch - self.first_epoch) * event.steps + event.step
        total = (self.max_epochs - self.first_epoch + 1) * event.steps
        text = f"step {event.step}/{event.steps}  loss {event.loss:.4f}  {event.users_per_s:,.0f} users/s"
        if self.first is None:
            self.first = (now, done)
        elif done > self.first[1]:
            per_step = (now - self.first[0]) / (done - self.first[1])
            text += f"  at most {duration(per_step * (total - done))} left"
        head = f"epoch {event.epoch}/{self.max_epochs}"
        if self.console.is_terminal:
            self.bar.update(self.task, description=head, total=total, completed=done, state=text)
        elif now - self.last_line >= LINE_SECONDS:
            self.line(f"{head}  {text}")

    def evaluation(self, share: float) -> None:
        """Shown only if it takes long."""
        text = f"evaluating held-out users, {share:.0%} done"
        if self.console.is_terminal:
            self.bar.update(self.task, state=text)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.line(text)

    def epoch(self, event: EpochDone) -> None:
        metrics = event.metrics
        star = "  *best" if event.is_best and LOGGED_SELECTION in metrics else ""
        skipped = int(metrics.get("train/skipped_steps", 0))
        found = metrics.get(LOGGED_SELECTION)
        validation = f"val NDCG_p@10 {found:.4f}  " if found is not None else ""
        left_out = f"  {counted(skipped, 'step')} skipped" if skipped else ""
        self.line(
            f"epoch {event.epoch:>3}/{self.max_epochs}  loss {metrics['train/loss']:.4f}  "
            f"{validation}"
            f"{metrics['train/users_per_s']:,.0f} users/s  {event.seconds:.1f} s"
            f"{''.join(f'  {text}' for text in shown_weights(metrics, 'val/'))}{left_out}{star}"
        )

    def line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(text, markup=False)


def shown_weights(metrics: Mapping[str, float], start: str = "") -> list[str]:
    """The weights of the scores that validation has chosen, as text. start: of their names."""
    titles = {"likes_share": "likes' share", "gamma": "gamma"}
    return [f"{title} {metrics[start + name]:g}" for name, title in titles.items() if start + name in metrics]


def headline_table(rows: dict[str, dict[str, float]]) -> str:
    """Models by headline metrics; a missing metric (of a group without users) is shown as -.

    A second table has the metrics of many points, if there are any.
    """
    table = text_table(*_headline(rows), other_width=9)
    if not any(name in metrics for metrics in rows.values() for name in OF_POINTS):
        return table
    head = ["many points", *(metric_title(name.removeprefix(POINTS)) for name in OF_POINTS)]
    cells = [[name, *(score(metrics.get(key)) for key in OF_POINTS)] for name, metrics in rows.items()]
    width = max(len(head[0]), *map(len, rows))
    return f"{table}\n\n{text_table(head, cells, first_width=width, other_width=9)}"


def warning_of_full_lists(rows: dict[str, dict[str, float]]) -> str:
    """A warning if every list of every model holds the target, popularity's too; else empty."""
    hits = [metrics.get(HIT, 0.0) for metrics in rows.values()]
    if min(hits) < 1:
        return ""
    return (
        "WARNING: every list holds the target, whatever the model: the test users have seen nearly every item, so "
        "these metrics say nothing"
    )


def headline_markdown_table(rows: dict[str, dict[str, float]]) -> str:
    """The same as Markdown."""
    return markdown_table(*_headline({f"`{name}`": metrics for name, metrics in rows.items()}))


def _headline(rows: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows."""
    cells = [[name, *(score(metrics.get(key)) for _, key in HEADLINE)] for name, metrics in rows.items()]
    return ["model", *(title for title, _ in HEADLINE)], cells
