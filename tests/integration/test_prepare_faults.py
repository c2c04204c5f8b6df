"""Killed jobs, a huge history in a small heap, a real Spark cluster. Minutes each, so not part of `make test`."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from helpers.commands import ENVIRONMENT
from helpers.waiting import wait_until

from pnfrec_dist.data.schema import read_manifest
from pnfrec_dist.files.locations import Location
from spark_jobs.publish import whole_manifest
from spark_jobs.session import ensure_java
from spark_jobs.verify import verify

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
CONF = "source: {files: '*.csv'}\nfeedback: {threshold: 4}\n"
JOB = ("--dataset", "tiny", "--raw", "raw")


def write_log(path: Path, rows: int, *, seed: int, bot_rows: int = 0) -> None:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 400, rows), rng.integers(1, 300, rows)
    if bot_rows:
        users = np.concatenate([users, np.zeros(bot_rows, int)])
        items = np.concatenate([items, rng.integers(1, 300, bot_rows)])
    times = 1_600_000_000 + rng.integers(0, 10_000_000, len(users))
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.column_stack([users, items, rng.integers(1, 6, len(users)), times])
    np.savetxt(path, table, fmt="%d", delimiter=",", header="user,item,rating,timestamp", comments="")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/tiny.yaml").write_text(CONF)
    write_log(tmp_path / "raw/log.csv", 20_000, seed=1)
    return tmp_path


def start(directory: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "spark_jobs", *JOB, *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=directory, text=True, env=os.environ | environment, stdout=pipe, stderr=pipe)


def finish(directory: Path, *args: str, **environment: str) -> str:
    job = start(directory, *args, **environment)
    out, err = job.communicate(timeout=900)
    assert job.returncode == 0, err
    return out


def digest(place: Path) -> str | None:
    manifest = whole_manifest(Location(place))
    return manifest.digest if manifest else None


def kill_at(directory: Path, moment: str, *args: str) -> bool:
    """Sends SIGKILL to a job at a moment of MOMENTS and waits for Java's end. Returns whether it came in time."""
    job = start(directory, *args)
    assert job.stdout is not None
    if moment == "in place":
        old = digest(directory / "data/prepared/tiny")
        wait_until(lambda: digest(directory / "data/prepared/tiny") != old or job.poll() is not None)
    else:
        assert any(re.match(rf"\[ *\d+ s\] {moment} ", line) for line in job.stdout), f"it never said {moment}"
    java = psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []
    job.kill()
    job.communicate()
    psutil.wait_procs(java, timeout=30)
    return job.returncode == -signal.SIGKILL


def test_killed_at_ten_moments_the_old_data_set_or_none_is_there(workspace: Path) -> None:
    """SIGKILL at 10 moments of the build: 3 without an old data set, 7 with an old one of other settings.

    A job that is killed after it moved its data set into place leaves that data set complete.
    """
    final = workspace / "data/prepared/tiny"
    finish(workspace)
    first = digest(final)
    finish(workspace, "--split.seed", "7")
    second = digest(final)
    assert first is not None and second is not None and first != second
    for entry in final.parent.iterdir():
        shutil.rmtree(entry)
    for moment in ("read", "train", "holdout"):
        assert kill_at(workspace, moment)
        assert digest(final) is None and not (final / "_SUCCESS").exists()
    finish(workspace)
    for moment in ("read", "quarantined", "interactions", "split", "filtered", "train", "in place"):
        was_killed = kill_at(workspace, moment, "--split.seed", "7")
        assert was_killed or moment == "in place"
        assert digest(final) == (second if moment == "in place" else first), moment
    finish(workspace, "--split.seed", "7")
    assert digest(final) == second
    assert [p.name for p in final.parent.iterdir()] == ["tiny"], "the next build clears what the killed ones left"


def test_a_bot_with_ten_million_rows_does_not_kill_an_executor(workspace: Path) -> None:
    """One user has 10 million rows, and the heap is 1 GB: no task may hold the whole history of that user."""
    write_log(workspace / "raw/log.csv", 300_000, seed=2, bot_rows=10_000_000)
    heap = "--driver-memory 1g pyspark-shell"
    finish(workspace, "--split.assignment", "permutation", PYSPARK_SUBMIT_ARGS=heap)
    manifest = verify(Location(workspace / "data/prepared/tiny"))
    assert manifest.counts["length_all"]["max"] > 5_000_000
    rows = pq.read_table(workspace / "data/prepared/tiny/train").to_pylist()
    (bot,) = [row for row in rows if row["user_id"] == "0"]
    assert len(bot["items"]) == len(bot["positive_items"]) == len(bot["negative_items"]) == 200


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A standalone master and two workers of the installed pyspark, on loopback."""
    ensure_java()
    import pyspark

    home = Path(pyspark.__file__).parent
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }
    environment.pop("PYTHONPATH", None)
    port = free_port()
    url = f"spark://127.0.0.1:{port}"
    launcher = [str(home / "bin/spark-class")]
    host = ["--host", "127.0.0.1", "--webui-port", "0"]
    processes = []

    def launch(name: str, *args: str) -> None:
        with (tmp_path / f"{name}.log").open("wb") as log:
            line = [*launcher, *args]
            processes.append(
                subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    launch("master", "org.apache.spark.deploy.master.Master", *host, "--port", str(port))
    for number in (1, 2):
        work = tmp_path / f"work-{number}"
        size = ["--cores", "1", "--memory", "1g", "--work-dir", str(work)]
        launch(f"worker-{number}", "org.apache.spark.deploy.worker.Worker", *host, *size, url)
    wait_until(lambda: (tmp_path / "master.log").read_text().count("Registering worker") == 2)
    yield url
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_a_standalone_cluster_builds_the_same_data_set(workspace: Path, cluster: str) -> None:
    """Through --spark-master, and through spark-submit with the packages in a zip; URIs in and out; equal to local."""
    finish(workspace)
    local = read_manifest(workspace / "data/prepared/tiny")
    places = ["--raw", (workspace / "raw").as_uri(), "--data-dir", (workspace / "shared").as_uri()]
    out = finish(workspace, *places, "--spark-master", cluster)
    assert "wrote" in out
    assert verify(Location(workspace / "shared/tiny")).digest == local.digest
    subprocess.run(["make", "-C", str(ROOT), "py-files", f"DIST={workspace}/dist"], check=True, capture_output=True)
    import pyspark

    home = Path(pyspark.__file__).parent
    submit = [str(home / "bin/spark-submit"), "--master", cluster, "--conf", "spark.driver.bindAddress=127.0.0.1"]
    submit += ["--conf", "spark.driver.host=127.0.0.1", "--conf", "spark.executor.memory=512m"]
    submit += ["--py-files", str(workspace / "dist/pnfrec_dist.zip"), str(workspace / "dist/prepare.py")]
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
    }
    arguments = ["--dataset", "tiny", "--raw", (workspace / "raw").as_uri(), "--data-dir", str(workspace / "submitted")]
    done = subprocess.run(
        [*submit, *arguments], cwd=workspace, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert verify(Location(workspace / "submitted/tiny")).digest == local.digest
    executors = "".join(path.read_text(errors="replace") for path in (workspace).rglob("work-*/app-*/*/stderr"))
    assert re.search(r"pnfrec_dist\.zip", executors), "executors fetched the packages"


def test_a_python_of_the_cluster_without_pyarrow_is_named(workspace: Path, cluster: str) -> None:
    venv.create(workspace / "bare")
    bare = workspace / "bare/bin/python"
    line = [sys.executable, "-m", "spark_jobs", "--dataset", "tiny", "--raw", "raw", "--spark-master", cluster]
    environment = ENVIRONMENT | {"PYSPARK_PYTHON": str(bare)}
    done = subprocess.run(line, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    error = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    said = f"error: Spark's workers run PYSPARK_PYTHON={bare}, which has no pyarrow; set PYSPARK_PYTHON"
    assert len(error) == 1 and error[0].startswith(said), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (workspace / "data/prepared/tiny").exists()
