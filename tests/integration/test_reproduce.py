"""The real reproduce command: killed, continued, reported, with parent and child runs in MLflow. Its registered model
is loaded in a process that only has the model's own files."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, called, started
from helpers.waiting import wait_until
from mlflow import MlflowClient
from mlflow.entities import Run

from pnfrec_dist import reproduce
from pnfrec_dist.errors import InputError

pytestmark = pytest.mark.integration

FLAGS = ["--epochs", "2", "--encoder.hidden-size", "8", "--encoder.max-length", "5", "--train.batch-size", "8"]
TWO = ["--dataset", "tiny", "--models", "sasrec_p", "sasrec_c", "--seeds", "1", "--num-workers", "1", *FLAGS]
COMMAND = ["-m", "pnfrec_dist.reproduce", *TWO]
LOAD = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [path for path in sys.path if "site-packages" in path or "python3" in path]
import mlflow
model = mlflow.pyfunc.load_model("models:/pnfrec-dist-tiny@best")
import pnfrec_dist
answers = model.predict([{"liked": ["3", "nothing", "7"], "top_k": 4}, {"liked": []}])
signature = model.metadata.signature.to_dict()
example = model.input_example
print(json.dumps([pnfrec_dist.__file__, [a.model_dump() for a in answers], signature, example]))
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    directory = tmp_path_factory.mktemp("reproduce")
    prepared_writer(directory / "data" / "prepared" / "tiny")
    return directory


@pytest.fixture(scope="module")
def outputs(workspace: Path, ray_here: None) -> list[str]:
    """Outputs of three commands: one is killed in its second training, the next one continues it, a third follows."""
    line = [sys.executable, *COMMAND]
    first = subprocess.Popen(line, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    output = ""
    for text in first.stdout:
        output += text
        if text.startswith("[2/2]"):
            wait_until(
                lambda: list(workspace.glob("runs/*/sasrec_c-*/run.json")), unless=lambda: first.poll() is not None
            )
            first.send_signal(signal.SIGKILL)
    assert first.wait(60) == -signal.SIGKILL
    return [output, *(called(reproduce.main, workspace, *TWO) for _ in range(2))]


def runs(workspace: Path) -> tuple[MlflowClient, Run, list[Run]]:
    """Client, parent, children."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.info.run_name == "reproduce tiny"]
    return client, parent, [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def test_finished_trainings_are_not_run_again(workspace: Path, outputs: list[str]) -> None:
    killed, gone_on, again = outputs
    started = r"^\[(\d/\d)\] (\w+) tiny .*seed 1"
    assert re.findall(started, killed, re.M) == [("1/2", "sasrec_p"), ("2/2", "sasrec_c")]
    assert re.findall(started, gone_on, re.M) == [("1/1", "sasrec_c")]
    assert "[1/" not in again, "nothing is left to train"
    for output in (gone_on, again):
        assert "trainings with a result: 2 of 2" in output
    children = list((workspace / "runs" / "reproduce-tiny").glob("sasrec*"))
    assert len(children) == 2
    text = (workspace / "runs" / "reproduce-tiny" / "report" / "report.md").read_text()
    assert (
        re.search(r"\| `sasrec_c` \| 1 \| \d?\.\d{4}", text)
        and "python -m pnfrec_dist.reproduce --dataset tiny" in text
    )


def test_mlflow_shows_parent_and_children(workspace: Path, outputs: list[str]) -> None:
    client, parent, children = runs(workspace)
    assert parent.info.status == "FINISHED" and parent.info.run_name == "reproduce tiny"
    names = sorted(str(run.info.run_name) for run in children)
    assert [re.sub(" epochs=.* seed", " seed", name) for name in names] == [f"sasrec_{x} tiny seed 1" for x in "cp"]
    for run in children:
        assert run.info.status == "FINISHED"
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["dataset"], tags["seed"], tags["kind"]) == ("tiny", "1", "training")
        assert "| `popularity_positive` |" in tags["mlflow.note.content"]
        assert "system/cpu_utilization_percentage" in run.data.metrics
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
        names = {a.path for a in client.list_artifacts(run.info.run_id, "result")}
        assert {"result/learning_curves.png", "result/result.json", "result/test_users.parquet"} <= names
        assert run.outputs is not None and len(run.outputs.model_outputs) == 1
    term = {run.data.tags["model"]: {"train/ce_positive", "train/ce_all"} & run.data.metrics.keys() for run in children}
    assert term == {"sasrec_p": {"train/ce_positive"}, "sasrec_c": {"train/ce_all"}}
    means = {run.data.tags["model"]: run.data.metrics["test/ndcg_p_at_10"] for run in children}
    for model, mean in means.items():
        assert parent.data.metrics[f"{model}/ndcg_p_at_10"] == mean
    assert "popularity_positive/hr_delta_at_20" in parent.data.metrics
    assert "| `sasrec_c` |" in parent.data.tags["mlflow.note.content"]
    artifacts = {a.path for a in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/report.md", "report/figures", "report/tables"} <= artifacts


def test_the_best_is_registered_and_loads_in_a_process_without_this_package(
    workspace: Path, outputs: list[str], tmp_path: Path
) -> None:
    client, _, children = runs(workspace)
    best = max(
        children, key=lambda run: max(m.value for m in client.get_metric_history(run.info.run_id, "val/ndcg_p_at_10"))
    )
    version = client.get_model_version_by_alias("pnfrec-dist-tiny", "best")
    assert version.run_id == best.info.run_id and version.tags["model"] == best.data.tags["model"]
    assert len(client.search_model_versions("name = 'pnfrec-dist-tiny'")) == 1, "once, however often it is reported"
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace / 'mlflow.db'}"}
    environment = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    package, answers, signature, example = json.loads(done.stdout.splitlines()[-1])
    assert "mlartifacts" in package and "pnfrec_dist.zip" in package, "the package that was logged with the model"
    assert "liked" in signature["inputs"] and "scores" in signature["outputs"] and example[0]["top_k"] == 5
    assert len(answers[0]["items"]) == 4 and not {"3", "7"} & set(answers[0]["items"])
    assert answers[0]["unknown"] == ["nothing"] and len(answers[1]["items"]) == 10
    assert answers[0]["scores"] == sorted(answers[0]["scores"], reverse=True)
    assert version.source is not None
    model = version.source.removeprefix("models:/")
    directory = Path(client.get_logged_model(model).artifact_location.removeprefix("file://"))
    assert not [p for p in directory.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]


@pytest.mark.slow
@pytest.mark.usefixtures("outputs")
def test_an_interrupt_at_the_end_of_a_training_starts_no_other(workspace: Path) -> None:
    """SIGINT after the last epoch: the test may still run, but no other training starts; exit 130.

    Two of the six models already have a result.
    """
    line = [sys.executable, *COMMAND, "--name", "interrupted"]
    process = subprocess.Popen(line, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = ""
    for text in process.stdout:
        output += text
        if text.startswith("epoch   2/2"):
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, output
    assert "[2/2]" not in output and "stopped; run the same command again to continue" in output
    line = [sys.executable, "-m", "pnfrec_dist.reproduce", "--dataset", "tiny", "--seeds", "1", "--dry-run", *FLAGS]
    listed = subprocess.run(line, cwd=workspace, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (
        listed.returncode == 0 and listed.stdout.count("to be trained") == 4 and "nothing was trained" in listed.stdout
    )


@pytest.mark.slow
def test_more_seeds_models_and_values_add_to_what_there_is(workspace: Path, outputs: list[str]) -> None:
    """The training with alpha 0 is the table's sasrec_p. The parent run has tags with the models and seeds."""
    line = [sys.executable, "-m", "pnfrec_dist.reproduce", "--dataset", "tiny", "--num-workers", "1", *FLAGS]
    line += ["--models", "sasrec_p", "sasrec_c", "pnfrec", "--seeds", "1", "--alphas", "0", "0.5"]
    listed = subprocess.run([*line, "--dry-run"], cwd=workspace, env=ENVIRONMENT, capture_output=True, text=True)
    assert "2 trainings are missing" in listed.stdout, listed.stdout + listed.stderr
    done = subprocess.run(line, cwd=workspace, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and "trainings with a result: 5 of 5" in done.stdout, done.stderr
    assert re.search(r"\[1/2\] pnfrec tiny .*seed 1", done.stdout)
    assert re.search(r"\[2/2\] pnfrec_pn tiny .*alpha=0.5 .*seed 1", done.stdout)
    _, parent, children = runs(workspace)
    assert len(children) == 4 and parent.data.tags["seeds"] == "1"
    note = parent.data.tags["mlflow.note.content"]
    assert "| `pnfrec` | 1 |" in note and "planned trainings" not in note


def test_nothing_to_report_and_no_such_data_are_said_in_a_line(workspace: Path) -> None:
    for flags, message in (
        (["--dataset", "tiny", "--name", "other", "--report-only"], "there is no result"),
        (["--dataset", "nothing"], "unknown dataset 'nothing'"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            called(reproduce.main, workspace, *flags)
        assert "\n" not in str(caught.value)
    done = started(workspace, "pnfrec_dist.reproduce", "--dataset", "tiny", "--seeds", "1.5")
    assert done.returncode == 2 and "--seeds is '1.5'; it must be a number of seeds" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
