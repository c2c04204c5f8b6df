"""Logs a tested training to MLflow: metrics, description, curves, target ranks, user cards, model, checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import first_line
from pnfrec_dist.experiments import plots
from pnfrec_dist.experiments.final_training import chosen_by
from pnfrec_dist.experiments.terminal_progress import headline_markdown_table
from pnfrec_dist.files.tables import write_csv
from pnfrec_dist.files.text import counted
from pnfrec_dist.inference.artifact import MODEL_DIRECTORY, Exported, of_checkpoint
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.inference.user_cards import write_cards
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.training.events import BestTested, EpochDone
from pnfrec_dist.training.result import DIRECTORY as RESULT_DIRECTORY

LISTS = "lists.txt"
"""Cards of some users, for people."""


def log_outcome(
    tracked: TrackedRun, settings: Settings, data: PreparedData, epochs: Sequence[EpochDone], test: BestTested
) -> None:
    """Logs the test of the best epoch. Keys contain the epoch: a run that is trained longer may find a better one."""
    best, run_dir = test.best_epoch, tracked.spool.directory
    metrics = {f"test/{name}": value for name, value in (test.metrics | test.weights).items()}
    for floor, found in test.floors.items():
        metrics.update({f"test_{floor}/{name}": value for name, value in found.items()})
    tracked.log_metrics(f"test/{best}", metrics, best)
    note = _final_description(settings) if settings.final else _description(test, settings, best)
    tracked.log_tags(f"best_epoch/{best}", {"best_epoch": str(best), "mlflow.note.content": note})
    checkpoint = Path(test.checkpoint)
    result, model = run_dir / RESULT_DIRECTORY, run_dir / MODEL_DIRECTORY
    trained: list[Exported] = []

    def write_model() -> None:
        trained.append(of_checkpoint(checkpoint, settings, data))
        save_model(model, trained[0])

    _try(tracked.say, "curves", lambda: _write_curves(result, settings, epochs))
    has_model = _try(tracked.say, "model", write_model)
    if has_model and result.is_dir() and data.manifest.has_holdout:
        _try(tracked.say, "lists of some users", lambda: write_cards(result / LISTS, trained[0], data))
    if result.is_dir():
        tracked.log_directory(f"result/{best}", result, RESULT_DIRECTORY)
    if has_model:
        tags = {"model": settings.model, "dataset": settings.dataset, "seed": str(settings.seed)}
        tracked.log_model(f"model/{best}", model, tags, best, f"test/{best}")
    tracked.log_directory(f"checkpoint/{best}", checkpoint, "checkpoint")


def _try(say: Callable[[str], None], what: str, write: Callable[[], object]) -> bool:
    """Whether `write` succeeded. Any error, such as a full disk, only gives a warning."""
    try:
        write()
    except Exception as error:
        say(f"warning: cannot write the {what} ({first_line(error)}); the rest is kept")
        return False
    return True


def _final_description(settings: Settings) -> str:
    """Markdown for the top of the page of a final training."""
    evaluated = chosen_by(settings)
    rows = {settings.model: evaluated.test, **evaluated.floors}
    what = f"`{settings.model}` on all interactions of `{settings.dataset}`, {counted(settings.epochs, 'epoch')}"
    of_run = f"It has no test of its own. The table is the test of `{settings.final}`, which chose it"
    return f"{headline_markdown_table(rows)}\n\n{what}. {of_run}."


def _description(test: BestTested, settings: Settings, best: int) -> str:
    """Markdown for the top of the run's page."""
    rows = {settings.model: test.metrics, **test.floors}
    what = f"`{settings.model}` on `{settings.dataset}`, seed {settings.seed}: test users after epoch {best}"
    more = f"curves and each user's rank: `{RESULT_DIRECTORY}/` among the artifacts"
    return f"{headline_markdown_table(rows)}\n\n{what}, the best on validation NDCG_p@10; {more}."


def _write_curves(directory: Path, settings: Settings, epochs: Sequence[EpochDone]) -> None:
    curves = plots.learning_curves({settings.model: [epochs]}, settings.loss.weights)
    plots.save_png(curves, directory / "learning_curves.png")
    names = list(dict.fromkeys(name for entry in epochs for name in entry.metrics))
    rows = ([entry.epoch, *(entry.metrics.get(name, "") for name in names)] for entry in epochs)
    write_csv(directory / "learning_curves.csv", ["epoch", *names], rows)
