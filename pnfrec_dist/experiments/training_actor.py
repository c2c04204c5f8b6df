"""A process that trains while others train: the only worker of its trainings, with the progress in a file."""

import contextlib
import threading
from pathlib import Path
from typing import Any

from pnfrec_dist.errors import InputError, RunError, first_line
from pnfrec_dist.experiments.tracked_training import Finished, Job, train
from pnfrec_dist.training.run_directory import write_failure

LOG = "training.log"
"""In a run's directory: what a training that runs alone shows on the terminal."""


class TrainingActor:
    """Trains one job after another; see cluster/actors.py."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def run(self, work: Job) -> Finished | None:
        """Returns and raises as train() does, and RunError for any other error."""
        log: Any = _Log(work.run.directory / LOG)
        try:
            return train(work, self.stop, log)
        except (InputError, RunError):
            raise
        except Exception as error:
            what = first_line(error, with_class=True)
            raise RunError(f"the training failed: {what}{write_failure(work.run.directory, error)}") from error

    def request_stop(self) -> None:
        self.stop.set()


class _Log:
    """A file to write to. If the disk is full, a line is lost and the training continues."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        """Nothing: every write opens and closes the file."""
