"""An MLflow server, and a workspace with a data set that the real preparation built from raw ratings."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from helpers.commands import started
from helpers.logs import Log
from helpers.mlflow_server import mlflow_server
from pyspark.sql import SparkSession

from spark_jobs.synthetic import generate

DATASET = {"source": {"files": "ratings.csv"}, "feedback": {"threshold": 4}}
TRAIN = {"encoder": {"hidden_size": 16}, "train": {"batch_size": 64}, "epochs": 3}


@pytest.fixture(scope="session")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes directories with own conf/, raw ratings of 300 users over 120 items, and the data set tiny made of them.

    The command builds it once for all processes of the test run.
    """

    def build(directory: Path) -> None:
        for kind, content in (("dataset", DATASET), ("train", TRAIN)):
            file = directory / "conf" / kind / "tiny.yaml"
            file.parent.mkdir(parents=True)
            file.write_text(yaml.safe_dump(content))
        (directory / "raw").mkdir()
        table = generate(3, users=300, items=120)[0]
        lines = ["user,item,rating,timestamp", *(",".join(map(str, row)) for row in table)]
        (directory / "raw" / "ratings.csv").write_text("\n".join(lines) + "\n")
        done = started(directory, "spark_jobs", "--dataset", "tiny", "--raw", "raw")
        assert done.returncode == 0, done.stdout + done.stderr

    def new() -> Path:
        base = tmp_path_factory.getbasetemp()
        built = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workspace-built"
        with FileLock(f"{built}.lock"):
            if not built.exists():
                draft = built.with_suffix(".draft")
                build(draft)
                draft.rename(built)
        return Path(shutil.copytree(built, tmp_path_factory.mktemp("workspace"), dirs_exist_ok=True))

    return new


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an MLflow server on loopback. Each test uses its own experiment."""
    directory = tmp_path_factory.mktemp("server")
    with mlflow_server(directory, "--artifacts-destination", str(directory / "artifacts")) as port:
        yield port


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Log:
    for name in ("raw", "conf/dataset"):
        (tmp_path / name).mkdir(parents=True)
    return Log(spark, tmp_path, capsys)
