"""A real MLflow server behind a faulty proxy: no record is lost or doubled, and training does not wait."""

import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faulty_proxy import Proxy
from helpers.mlflow_server import ENVIRONMENT, free_port
from helpers.recovery import Command, metric_histories
from helpers.waiting import wait_until
from mlflow import MlflowClient

from pnfrec_dist.config.settings import EncoderSettings, Settings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.logged_result import log_outcome
from pnfrec_dist.tracking import __main__ as flush
from pnfrec_dist.tracking import run as tracking
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_name import run_name
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FINISHED, KILLED
from pnfrec_dist.training.events import BestTested, EpochDone, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.run_directory import Run

pytestmark = pytest.mark.integration

EPOCHS = 6


@pytest.fixture
def data(prepared: Path) -> PreparedData:
    return open_prepared(prepared)


SOON = {"FIRST_WAIT": 0.05, "LONGEST_WAIT": 0.2}
LITTLE_PATIENCE = {"START_PATIENCE": 1.0, "END_PATIENCE": 1.0}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are sent again at once, and commands wait long for a server that is slow on a busy machine."""
    for name, seconds in {**SOON, "START_PATIENCE": 60.0, "END_PATIENCE": 60.0}.items():
        monkeypatch.setattr(tracking, name, seconds)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


class Story:
    """What a training command does with MLflow, in one thread. If a call waited for MLflow, the thread would not reach
    the point at which the test lets MLflow answer again."""

    def __init__(self, tmp_path: Path, data: PreparedData, uri: str) -> None:
        self.data, self.uri, self.lines = data, uri, []
        self.settings = Settings(dataset="tiny", experiment=tmp_path.name)
        self.run = Run(tmp_path / "runs" / "r", {}, data.manifest.digest)
        if not self.run.directory.exists():
            self.run.write()
        (self.run.directory / "best").mkdir(exist_ok=True)
        (self.run.directory / "best" / "model").write_text("weights")

    def begin(self) -> TrackedRun:
        tracked = TrackedRun(self.run.directory, self.run.key, self.uri, self.lines.append)
        tracked.start(opening_of_training(self.settings, self.data.manifest, self.data.directory))
        return tracked

    def epochs(self, tracked: TrackedRun, first: int, last: int, meanwhile: Callable[[int], None]) -> None:
        for epoch in range(first, last + 1):
            meanwhile(epoch)
            tracked.log_metrics(f"epoch/{epoch}", {"train/loss": 1 / epoch, "val/ndcg_p_at_10": float("nan")}, epoch)

    def end(self, tracked: TrackedRun) -> None:
        tracked.log_metrics("test", {"test/hr_p_at_10": 0.5}, 3)
        tracked.log_tags("best_epoch", {"best_epoch": "3"})
        tracked.log_directory("checkpoint", self.run.directory / "best", "checkpoint")
        tracked.close(FINISHED)

    def require_told_once(self, port: int) -> None:
        """MLflow has one run with every record exactly once."""
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name(self.settings.experiment)
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == FINISHED and run.info.run_name == run_name(self.settings)
        assert run.data.params["dataset"] == "tiny" and run.data.tags["best_epoch"] == "3"
        for name, steps in (("train/loss", range(1, EPOCHS + 1)), ("test/hr_p_at_10", [3])):
            assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == list(steps)
        assert len(client.get_metric_history(run.info.run_id, "val/ndcg_p_at_10")) == EPOCHS
        assert run.inputs is not None and len(run.inputs.dataset_inputs) == 1
        paths = {a.path for folder in ("checkpoint", "data") for a in client.list_artifacts(run.info.run_id, folder)}
        assert paths == {"checkpoint/model", "data/manifest.json"}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("trouble", ["refuse", "hang", "slow", "lose answers"])
def test_trouble_that_passes_costs_nothing(tmp_path: Path, data: PreparedData, server: int, trouble: str) -> None:
    """The trouble lasts from the second to the fourth epoch."""
    proxy = Proxy(server)
    story = Story(tmp_path, data, proxy.uri)
    tracked = story.begin()
    assert tracked.run_id

    def meanwhile(epoch: int) -> None:
        if epoch > 2:
            wait_until(lambda: proxy.met)
        proxy.set(trouble if 2 <= epoch < 5 else "pass")

    story.epochs(tracked, 1, EPOCHS, meanwhile)
    wait_until(lambda: not tracked.spool.unsent)
    story.end(tracked)
    assert tracked.spool.unsent == 0
    story.require_told_once(server)
    said = [line for line in story.lines if "warning" in line]
    assert len(said) == sum("answers again" in line for line in story.lines) and (said or trouble in ("slow", "hang"))


LOST = {
    f"{trouble} {since}": (trouble, since)
    for trouble in ("refuse", "hang")
    for since in ("from the start", "after two epochs")
}


def commands(root: Path, prepared: Path, uris: dict[str, str]) -> None:
    """Training commands, one after another, in another process. Between epochs 2 and 3, each waits for a file."""
    for name, seconds in (SOON | LITTLE_PATIENCE).items():
        setattr(tracking, name, seconds)
    for name, uri in uris.items():
        directory = root / name
        directory.mkdir()
        story = Story(directory, open_prepared(prepared), uri)
        tracked = story.begin()
        story.epochs(tracked, 1, 2, lambda _: None)
        if LOST[name][1] == "after two epochs":
            wait_until(lambda tracked=tracked: not tracked.spool.unsent)
        (directory / "half").touch()
        wait_until((directory / "go on").exists)
        story.epochs(tracked, 3, EPOCHS, lambda _: None)
        story.end(tracked)
        assert tracked.spool.unsent > 3 and "tracking flush" in story.lines[-1]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path], server: int) -> Path:
    """A directory for each case of LOST, with the files that its command left."""
    root = tmp_path_factory.mktemp("lost")
    prepared = prepared_writer(root / "prepared" / "tiny")
    proxies = {name: Proxy(server) for name in LOST}
    for name, (trouble, since) in LOST.items():
        proxies[name].set(trouble if since == "from the start" else "pass")
    uris = {name: proxy.uri for name, proxy in proxies.items()}
    process = multiprocessing.get_context("spawn").Process(target=commands, args=(root, prepared, uris))
    process.start()
    for name, (trouble, _) in LOST.items():
        wait_until((root / name / "half").exists, unless=lambda: not process.is_alive())
        proxies[name].set(trouble)
        (root / name / "go on").touch()
    process.join()
    assert process.exitcode == 0
    return root


@pytest.mark.parametrize("name", LOST)
def test_what_a_lost_server_did_not_get_is_flushed_later(
    left: Path,
    server: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server never answers, or no longer after two epochs. The command still ends."""
    monkeypatch.chdir(left / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="records are not sent"):
        flush.main(["flush"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}")
    assert flush.main(["flush"]) == 0
    assert flush.main(["flush"]) == 0
    assert re.search(r"records sent\n.*: all records were sent before\n", capsys.readouterr().out)
    Story(left / name, open_prepared(left / "prepared" / "tiny"), "").require_told_once(server)


SCENARIOS = {
    "never up": ("refuse", None),
    "drops and returns": ("refuse", 4),
    "never returns": ("hang", None),
    "slow": ("slow", 4),
}
"""The server's trouble, and the epoch after which it ends (None: never)."""


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_real_commands_with_mlflow_in_trouble(
    prepared_writer: Callable[..., Path], tmp_path: Path, server: int, soak: Callable[[str, str, str], None]
) -> None:
    """Runs the training command, then `tracking flush`: MLflow has the metrics of an undisturbed run, each once."""

    def train(name: str) -> tuple[Path, Command, Proxy]:
        workspace, proxy = tmp_path / name, Proxy(server)
        prepared_writer(workspace / "data/prepared/tiny", users=300, items=60)
        proxy.set("refuse" if name == "never up" else "pass")
        return workspace, Command(workspace, "--experiment", name, MLFLOW_TRACKING_URI=proxy.uri), proxy

    def told(name: str) -> list[tuple[str, int, float]]:
        histories = metric_histories(f"http://127.0.0.1:{server}", name)
        return [(metric, step, value) for metric, points in histories.items() for step, value in points]

    def longest_epoch(output: str) -> float:
        return max(float(seconds) for seconds in re.findall(r"users/s +([\d.]+) s", output)[1:])

    _, command, _ = train("undisturbed")
    assert command.end() == 0, command.output
    expected, usual, slowest, ended, lost, doubled = told("undisturbed"), longest_epoch(command.output), 0.0, 0, 0, 0
    for name, (trouble, passes) in SCENARIOS.items():
        workspace, command, proxy = train(name)
        command.wait_for(r"epoch +2/")
        proxy.set(trouble)
        if passes:
            command.wait_for(rf"epoch +{passes}/")
            proxy.set("pass")
        ended += command.end() == 0
        line = [sys.executable, "-m", "pnfrec_dist.tracking", "flush"]
        environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server}"}
        flushed = subprocess.run(line, cwd=workspace, env=environment, capture_output=True, text=True, timeout=300)
        assert flushed.returncode == 0, flushed.stdout + flushed.stderr
        slowest = max(slowest, longest_epoch(command.output))
        points = told(name)
        assert set(points) <= set(expected)
        lost += len(set(expected) - set(points))
        doubled += len(points) - len(set(points))
    found = f"{ended}/{len(SCENARIOS)} end, {lost} points lost, {doubled} doubled; longest epoch {slowest:.1f} s"
    soak("MLflow never up, drops, is gone, slow", f"{found} (else {usual:.1f} s)", "4/4, 0, 0")
    assert (ended, lost, doubled) == (len(SCENARIOS), 0, 0)


@pytest.mark.usefixtures("soon")
def test_a_command_that_starts_again_tells_each_epoch_once(tmp_path: Path, data: PreparedData, server: int) -> None:
    """The second command trains epochs 3 and 4 again, as after a kill."""
    story = Story(tmp_path, data, f"http://127.0.0.1:{server}")
    first = story.begin()
    story.epochs(first, 1, 4, lambda _: None)
    first.close(KILLED)
    second = story.begin()
    assert second.run_id == first.run_id
    story.epochs(second, 3, EPOCHS, lambda _: None)
    story.end(second)
    story.require_told_once(server)


@pytest.mark.usefixtures("soon")
def test_another_server_gets_all_of_it(
    tmp_path: Path, data: PreparedData, server: int, empty_mlflow: Callable[[Path], str]
) -> None:
    story = Story(tmp_path, data, empty_mlflow(tmp_path))
    first = story.begin()
    story.epochs(first, 1, 2, lambda _: None)
    first.close(KILLED)
    story.uri = f"http://127.0.0.1:{server}"
    second = story.begin()
    story.epochs(second, 3, EPOCHS, lambda _: None)
    story.end(second)
    story.require_told_once(server)
    shutil.rmtree(tmp_path / "mlartifacts", ignore_errors=True)


@pytest.mark.usefixtures("soon")
def test_a_refusal_is_said_at_once(tmp_path: Path, data: PreparedData, server: int) -> None:
    client = MlflowClient(f"http://127.0.0.1:{server}")
    client.delete_experiment(client.create_experiment(tmp_path.name))
    with pytest.raises(InputError, match="was deleted; restore it"):
        Story(tmp_path, data, f"http://127.0.0.1:{server}").begin()
    (tmp_path / "no.db").write_bytes(b"this is no database, however long it may be" * 99)
    with pytest.raises(InputError, match="refused to start a run"):
        Story(tmp_path, data, f"sqlite:///{tmp_path}/no.db").begin()


@pytest.mark.usefixtures("soon")
def test_a_run_that_is_trained_for_longer_tells_its_new_best_epoch(
    tmp_path: Path, data: PreparedData, server: int
) -> None:
    story = Story(tmp_path, data, f"http://127.0.0.1:{server}")
    settings = replace(story.settings, epochs=1, encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5))
    events: list[Event] = []
    TrainLoop(settings, data, story.run.directory, World(), Hooks(events.append, lambda: False)).run()
    (epoch,) = [event for event in events if isinstance(event, EpochDone)]
    (test,) = [event for event in events if isinstance(event, BestTested)]
    scores = {3: 0.25, 5: 0.5}
    for best in (3, 3, 5):
        tracked = story.begin()
        metrics = {**test.metrics, "a": scores[best]}
        log_outcome(tracked, settings, data, [epoch], replace(test, metrics=metrics, best_epoch=best))
        tracked.close(FINISHED)
    client = MlflowClient(story.uri)
    run = client.get_run(tracked.run_id)
    assert [(m.step, m.value) for m in client.get_metric_history(tracked.run_id, "test/a")] == list(scores.items())
    assert run.data.tags["best_epoch"] == "5" and run.data.metrics["test/a"] == 0.5
    assert run.data.tags["mlflow.note.content"].endswith("among the artifacts.")
    assert f"`{settings.model}` on `tiny`, seed 42: test users after epoch 5" in run.data.tags["mlflow.note.content"]
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{tracked.run_id}'")
    assert sorted(m.metrics[0].step for m in models if m.metrics) == [3, 5], "one of each best epoch"


@pytest.mark.usefixtures("soon")
def test_a_flush_goes_on_after_a_run_that_it_cannot_send(
    tmp_path: Path,
    data: PreparedData,
    server: int,
    empty_mlflow: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = Story(tmp_path, data, empty_mlflow(tmp_path))
    tracked = story.begin()
    story.epochs(tracked, 1, EPOCHS, lambda _: None)
    story.end(tracked)
    (tmp_path / "runs/a").mkdir()
    (tmp_path / "runs/a/tracking.jsonl").touch()
    shutil.rmtree(story.run.directory / "best")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}")
    with pytest.raises(InputError, match=r"runs/a has no readable run\.json"):
        flush.main(["flush"])
    (tmp_path / "runs/r/tracking.sent").unlink()
    assert flush.main(["flush", "runs/r"]) == 0
    assert re.search(r"runs/r: \d+ records sent\nwarning: runs/r/best is gone", capsys.readouterr().out)
    client = MlflowClient(f"http://127.0.0.1:{server}")
    experiment = client.get_experiment_by_name(story.settings.experiment)
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1
