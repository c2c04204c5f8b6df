"""Training commands that tests kill: starts them, finds their workers, compares their results."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from helpers.commands import ENVIRONMENT
from pnfrec_dist.training.checkpoint_manager import checkpoints

EPOCHS, STEPS = 9, 38
SETTINGS = {
    "--dataset": "tiny",
    "--epochs": str(EPOCHS),
    "--train.patience": str(EPOCHS),
    "--train.batch-size": "8",
    "--encoder.hidden-size": "16",
    "--checkpoint.every-steps": "10",
}
"""For a data set of 300 users: 38 steps per epoch, about 20 ms each."""


class Program:
    """A command of this project, as a user starts it."""

    def __init__(self, workspace: Path, line: Sequence[str], environment: dict[str, str]) -> None:
        """line: the arguments after `python -m`."""
        out, env = subprocess.PIPE, ENVIRONMENT | environment
        whole = [sys.executable, "-m", *line]
        self.process = subprocess.Popen(whole, cwd=workspace, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)
        self.output = ""

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            yield line

    def wait_for(self, pattern: str) -> None:
        """Waits until a line matches."""
        for line in self.lines():
            if re.search(pattern, line):
                return
        raise AssertionError(f"no line matched {pattern!r}:\n{self.output}")

    def end(self) -> int:
        for _ in self.lines():
            pass
        return self.process.wait(60)

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Its processes whose title matches."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
            except psutil.Error:
                continue
        return found


class Command(Program):
    """One training command."""

    def __init__(self, workspace: Path, *more: str, **environment: str) -> None:
        flags = [part for pair in SETTINGS.items() for part in pair]
        super().__init__(workspace, ["pnfrec_dist.train", *flags, *more], environment)

    def workers(self) -> list[psutil.Process]:
        """The training processes, of rank 0 and 1 in some order."""
        return self.processes("RayTrainWorker")


def only_run(workspace: Path) -> Path:
    (run,) = (workspace / "runs").iterdir()
    return run


def require_same_end(one: Path, other: Path) -> None:
    """The only runs of both workspaces have bitwise equal weights, optimizer and metrics, and each epoch once."""
    newest = [checkpoints(only_run(workspace))[0] for workspace in (one, other)]
    assert newest[0].name == newest[1].name == f"step-{EPOCHS * STEPS:09d}"
    for file in sorted(newest[0].glob("*.safetensors")):
        a, b = load_file(file), load_file(newest[1] / file.name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file
    histories = [metric_histories(f"sqlite:///{workspace}/mlflow.db") for workspace in (one, other)]
    assert histories[0] == histories[1]
    assert [step for step, _ in histories[0]["train/loss"]] == list(range(1, EPOCHS + 1))


def metric_histories(uri: str, experiment: str = "pnfrec-dist") -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every metric of the experiment's only run, which must have finished. Leaves out speed and
    system metrics."""
    client = MlflowClient(uri)
    (found,) = [e for e in client.search_experiments() if e.name == experiment]
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.status == "FINISHED"
    names = [name for name in run.data.metrics if name != "train/users_per_s" and not name.startswith("system/")]
    return {n: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, n)] for n in names}
