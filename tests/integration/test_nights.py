"""Nights of docs/operate/nightly.sh, killed at random moments, end with the champion of nights without kills."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import ENVIRONMENT
from mlflow import MlflowClient

from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.tracking.champion import CHAMPION
from spark_jobs.synthetic import write_ratings

Soak = Callable[[str, str, str], None]

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(5400)]
SCRIPT = Path(__file__).parents[2] / "docs" / "operate" / "nightly.sh"
NIGHTS, KILLS = 6, 2
"""KILLS: of each night, if it lasts long enough"""
NAME = "pnfrec-dist-tiny"
DATASET = {
    "source": {"files": "*.csv"},
    "feedback": {"threshold": 4},
    "filter": {"min_items_per_user": 2},
}
FLAGS = ["--model", "sasrec_p", "--epochs", "3", "--num-workers", "1", "--train.batch-size", "32"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The built-in data set in small, cut by time into a file for each night; the first has half of the rows."""
    path = tmp_path_factory.mktemp("raw") / "ratings.csv"
    write_ratings(path, seed=3, users=300, items=150, mean_ratings=30, least_ratings=8)
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    rows.sort(key=lambda row: int(row.split(",")[3]))
    later = len(rows) // 2
    cuts = [0, *(later + later * night // (NIGHTS - 1) for night in range(NIGHTS - 1)), len(rows)]
    return ["\n".join([header, *rows[start:end]]) + "\n" for start, end in itertools.pairwise(cuts)]


class Workspace:
    """A directory in which nights run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"sqlite:///{directory / 'mlflow.db'}"
        conf = directory / "conf" / "dataset" / "tiny.yaml"
        conf.parent.mkdir(parents=True)
        conf.write_text(yaml.safe_dump(DATASET), encoding="utf-8")
        (directory / "logs").mkdir()

    def night(self, number: int, content: str, moments: Iterator[float]) -> tuple[int, int, float]:
        """Adds a file, and runs the script until it ends by itself. Before that it is killed, with all of its
        processes, after each of these seconds. Returns the exit code, the number of kills, and the seconds."""
        (self.directory / "logs" / f"night-{number}.csv").write_text(content, encoding="utf-8")
        kills, started = 0, time.monotonic()
        environment = ENVIRONMENT | {"PNFREC": f"{sys.executable} -m pnfrec_dist", "OMP_NUM_THREADS": "1"}
        line = ["sh", str(SCRIPT), "tiny", "logs", *FLAGS]
        with (self.directory / "log.txt").open("a", encoding="utf-8") as log:
            while True:
                process = subprocess.Popen(
                    line, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
                )
                try:
                    code = process.wait(next(moments, None))
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
                    continue
                return code, kills, time.monotonic() - started

    def champion(self) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        """The figures of its comparison, and its weights."""
        version = MlflowClient(self.uri).get_model_version_by_alias(NAME, CHAMPION)
        figures = {key: value for key, value in version.tags.items() if key.startswith("ndcg")}
        return figures, open_trained(f"models:/{NAME}@{CHAMPION}", "data/whole").model.state_dict()


def test_six_nights_with_kills(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soak: Soak) -> None:
    rng, kills = random.Random(NIGHTS), 0
    calm, killed = Workspace(tmp_path / "calm"), Workspace(tmp_path / "killed")
    for number, content in enumerate(files):
        code, _, seconds = calm.night(number, content, iter(()))
        assert code in (0, 1), (calm.directory / "log.txt").read_text(encoding="utf-8")
        moments = iter([rng.random() * seconds for _ in range(KILLS)])
        again, times, _ = killed.night(number, content, moments)
        assert again == code, (killed.directory / "log.txt").read_text(encoding="utf-8")
        kills += times
    found = []
    for workspace in (calm, killed):
        monkeypatch.chdir(workspace.directory)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.uri)
        found.append(workspace.champion())
    (figures, weights), (others, of_killed) = found
    assert figures and figures == others
    assert weights.keys() == of_killed.keys() and all(torch.equal(weights[key], of_killed[key]) for key in weights)
    soak(f"{NIGHTS} nights, {kills} kills of all processes", "the same champion, bit for bit", "the same")
    assert kills >= NIGHTS
