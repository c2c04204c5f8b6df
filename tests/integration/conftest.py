"""An MLflow server, and a workspace whose data set the real preparation built of raw ratings."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from helpers.mlflow_server import mlflow_server
from helpers.preparation import prepared_in
from pyspark.sql import SparkSession

from spark_jobs.synthetic import generate_ratings

DATASET = {"source": {"files": "ratings.csv"}, "feedback": {"threshold": 4}}
TRAIN = {"encoder": {"hidden_size": 16}, "train": {"batch_size": 64}, "epochs": 3}


@pytest.fixture(scope="session")
def build_workspace(spark: SparkSession) -> Callable[[Path], Path]:
    """Fills a directory with own conf/, raw ratings of 300 users over 120 items, and the data set tiny made of them."""

    def build(directory: Path) -> Path:
        for kind, content in (("dataset", DATASET), ("train", TRAIN)):
            file = directory / "conf" / kind / "tiny.yaml"
            file.parent.mkdir(parents=True)
            file.write_text(yaml.safe_dump(content))
        (directory / "raw").mkdir()
        table = generate_ratings(3, users=300, items=120)
        lines = ["user,item,rating,timestamp", *(",".join(map(str, row)) for row in table)]
        (directory / "raw" / "ratings.csv").write_text("\n".join(lines) + "\n")
        prepared_in(spark, directory, "--dataset", "tiny", "--raw", "raw")
        return directory

    return build


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an MLflow server on loopback; tests keep apart by names of their own."""
    directory = tmp_path_factory.mktemp("server")
    with mlflow_server(directory, "--artifacts-destination", str(directory / "artifacts")) as port:
        yield port
