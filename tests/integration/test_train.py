"""All real commands: raw ratings -> Spark -> shards -> 2 Ray workers -> metrics -> MLflow."""

import contextlib
import ipaddress
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from helpers.commands import ENVIRONMENT, called, started
from helpers.waiting import wait_until
from mlflow import MlflowClient
from mlflow.entities import Run

from pnfrec_dist.data.schema import read_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.train import main as train_command

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def workspace(new_workspace: Callable[[], Path]) -> Path:
    return new_workspace()


@pytest.fixture(scope="module")
def trained(workspace: Path) -> str:
    done = started(workspace, "pnfrec_dist.train", "--dataset", "tiny", "--model", "pnfrec", "--num-workers", "2")
    assert done.returncode == 0, done.stderr
    return done.stdout


def mlflow_run(workspace: Path, output: str) -> tuple[MlflowClient, Run]:
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    found = re.search(r"run (\w{32})", output)
    assert found, output
    return client, client.get_run(found.group(1))


def test_training_prints_table_run_id_and_next_command(trained: str) -> None:
    tail = trained[-1_200:]
    assert re.search(r"model +HR_p@10 +NDCG_p@10 +dHR@10 +dNDCG@10", tail)
    assert re.search(r"pnfrec( +-?0\.\d{4}){4}", tail)
    assert re.search(r"popularity( +-?0\.\d{4}){4}", tail)
    assert re.search(r"many points +NDCG_p@10 +NDCG_n@10 +dNDCG@10\npnfrec( +-?0\.\d{4}){3}", tail)
    assert "make mlflow-ui" in tail
    assert "epoch   3/3" in trained
    assert "\x1b" not in trained, "no terminal codes in a log"


def test_run_holds_params_metrics_data_and_checkpoint(workspace: Path, trained: str) -> None:
    client, run = mlflow_run(workspace, trained)
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.alpha"] == "0.45" and run.data.params["encoder.hidden_size"] == "16"
    for name in ("train/loss", "train/ce_positive", "train/ce_negative", "train/contrastive", "train/users_per_s"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/ndcg_p_at_10")] == [1, 2, 3]
    for group in ("p", "n", "delta"):
        assert (
            f"test/hr_{group}_at_10" in run.data.metrics and f"test_popularity/ndcg_{group}_at_20" in run.data.metrics
        )
    table = re.search(r"pnfrec +(\S+) +(\S+) +(\S+) +(\S+)", trained[-1_200:])
    assert table
    for shown, key in zip(table.groups(), ("hr_p", "ndcg_p", "hr_delta", "ndcg_delta"), strict=True):
        assert float(shown) == pytest.approx(run.data.metrics[f"test/{key}_at_10"], abs=6e-5)
    digest = read_manifest(workspace / "data/prepared/tiny").digest
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "tiny" and digest.startswith(dataset.dataset.digest)
    assert run.data.tags["data_digest"] == digest
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", run.data.tags["mlflow.source.git.commit"])
    assert re.search(r"\btorch 2\.\d+.*, ray 2\.\d+.*, Python 3\.\d+", run.data.tags["versions"])
    artifacts = {a.path for folder in ("checkpoint", "data") for a in client.list_artifacts(run.info.run_id, folder)}
    assert {"checkpoint/COMMITTED", "checkpoint/model.safetensors", "data/manifest.json"} <= artifacts
    assert list((workspace / "mlartifacts").iterdir())


def listening_addresses(canary: str) -> list[str]:
    """Addresses that processes with PNFREC_CANARY=canary in their environment listen on."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PNFREC_CANARY") == canary:
                found += [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_is_killed_and_resumes_in_place(workspace: Path, number: signal.Signals) -> None:
    """A signal after epoch 2: exit 130, run KILLED. The printed command completes the run; every epoch is logged once.

    While it trains, its processes listen on loopback only.
    """
    line = [
        sys.executable,
        "-m",
        "pnfrec_dist.train",
        "--dataset",
        "tiny",
        "--epochs",
        "500",
        "--train.patience",
        "500",
    ]
    canary = secrets.token_hex(8)
    environment = ENVIRONMENT | {"PNFREC_CANARY": canary}
    process = subprocess.Popen(line, cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output, listeners = "", []
    for text in process.stdout:
        output += text
        if text.startswith("epoch   2/500"):
            listeners = listening_addresses(canary)
            process.send_signal(number)
    assert process.wait(timeout=60) == 130
    assert len(listeners) > 5 and all(ipaddress.ip_address(a.removeprefix("::ffff:")).is_loopback for a in listeners)
    client, run = mlflow_run(workspace, output)
    assert run.info.status == "KILLED"
    flags = re.search(r"python -m pnfrec_dist.train (.+)", output)
    assert flags
    args = flags.group(1).replace("--epochs 500", "--epochs 6").split()
    resumed = started(workspace, "pnfrec_dist.train", *args)
    assert resumed.returncode == 0, resumed.stderr
    client, same = mlflow_run(workspace, resumed.stdout)
    assert same.info.run_id == run.info.run_id and same.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 6


def is_tracked(workspace: Path) -> bool:
    """Whether MLflow's database, which may not be complete yet, has a running run."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{workspace / 'mlflow.db'}?mode=ro", uri=True)) as database,
    ):
        return database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0] > 0
    return False


def has_child(pid: int, title: str) -> bool:
    """Whether a process below this one has such words in its title."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(child.cmdline()):
                return True
    return False


@pytest.mark.slow
def test_a_second_interrupt_gives_up_at_once_and_leaves_nothing_running(workspace: Path) -> None:
    line = [sys.executable, "-m", "pnfrec_dist.train", "--dataset", "tiny", "--epochs", "500"]
    process = subprocess.Popen(
        line, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = ""

    def is_over() -> bool:
        return process.poll() is not None

    for text in process.stdout:
        output += text
        if text.startswith("tracking:"):  # workers are still starting
            wait_until(lambda: is_tracked(workspace) and has_child(process.pid, "TrainController"), is_over)
            process.send_signal(signal.SIGINT)
        if "press Ctrl-C again" in text:
            process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    (newest,) = client.search_runs(["1"], order_by=["attributes.start_time DESC"], max_results=1)
    assert newest.info.status == "KILLED"


@pytest.mark.usefixtures("ray_here")
def test_dry_run_prints_the_plan_and_trains_nothing(workspace: Path) -> None:
    """On a Ray of this machine, even if the environment names a cluster."""
    before = sorted((workspace / "runs").iterdir()) if (workspace / "runs").exists() else []
    printed = called(train_command, workspace, "--dataset", "tiny", "--dry-run")
    assert "plan: 2 workers" in printed and "memory per worker" in printed
    assert "nothing was trained" in printed
    after = sorted((workspace / "runs").iterdir()) if (workspace / "runs").exists() else []
    assert before == after


def test_a_training_begins_with_the_weights_of_another_run(workspace: Path, trained: str) -> None:
    (run,) = [run for run in (workspace / "runs").glob("pnfrec-tiny-*") if str(run) in trained]
    flags = ("--dataset", "tiny", "--model", "pnfrec", "--num-workers", "1", "--epochs", "1", "--init-from", str(run))
    printed = called(train_command, workspace, *flags)
    assert re.search(rf"warm start from {run}: \d+ items keep their vectors, 0 are new, 0 are gone", printed)
    losses = [
        float(loss) for text in (trained, printed) for loss in re.findall(r"epoch +1/\d.*?loss +(\d+\.\d+)", text)
    ]
    assert losses[-1] < losses[0], printed
    with pytest.raises(InputError, match=r"^--init-from runs/none: there is no directory 'runs/none'"):
        called(train_command, workspace, *flags[:-1], "runs/none", "--resume", "never")


def test_more_gpus_than_there_are_is_one_line(workspace: Path) -> None:
    with pytest.raises(InputError, match=r"^--num-gpus 64, but \d+ GPUs were found; .*$"):
        called(train_command, workspace, "--dataset", "tiny", "--num-gpus", "64")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "tini"], "did you mean 'tiny'"),
        (
            ["--dataset", "ml1m"],
            "no prepared data set at .*ml1m; build it: pnfrec prep --dataset ml1m",
        ),
        (["--dataset", "tiny", "--model", "pnfrex"], "did you mean 'pnfrec'"),
        (["--dataset", "tiny", "--resume", "nowhere"], "--resume is 'nowhere', and there is no such directory"),
        (["--dataset", "../tiny"], "a name may only have letters"),
        (
            ["--dataset", "tiny", "--encoder.hidden-size", "200000"],
            r"training needs about 2 workers x \d+.* GiB, the free memory is .* GiB; try .*--encoder.hidden-size",
        ),
    ],
)
def test_wrong_training_input_is_said(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(workspace)
    with pytest.raises(InputError, match=said):
        train_command(args)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://x", "must start with one of sqlite"),
        ("./mlruns", "must start with one of sqlite"),
        ("sqlite://mlflow.db", "it must be sqlite:///<path>"),
        ("sqlite:////nowhere/at/all/mlflow.db", "is not a directory"),
    ],
)
def test_a_malformed_tracking_uri_is_said_before_training(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=said) as caught:
        train_command(["--dataset", "tiny"])
    assert "unset MLFLOW_TRACKING_URI" in str(caught.value)


def test_data_prepared_with_other_settings_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    file = workspace / "conf/dataset/tiny.yaml"
    before = file.read_text()
    file.write_text(yaml.safe_dump({**yaml.safe_load(before), "max_history": 77}))
    try:
        with pytest.raises(InputError, match="max_history 200 -> 77"):
            train_command(["--dataset", "tiny"])
    finally:
        file.write_text(before)
