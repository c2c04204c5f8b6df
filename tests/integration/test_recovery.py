"""Training that is killed, for real: workers, the driver, a worker that hangs, an MLflow that never answers."""

import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from recovery import Command, only_run, require_same_end

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def workspaces(prepared_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes directories that hold the same data set of 300 users."""
    data = prepared_writer(tmp_path_factory.mktemp("data") / "tiny", users=300, items=60)

    def make() -> Path:
        directory = tmp_path_factory.mktemp("workspace")
        shutil.copytree(data, directory / "data/prepared/tiny")
        return directory

    return make


@pytest.fixture(scope="module")
def undisturbed(workspaces: Callable[[], Path]) -> Path:
    workspace = workspaces()
    command = Command(workspace)
    assert command.end() == 0, command.output
    return workspace


def test_killed_workers_and_driver_change_nothing(workspaces: Callable[[], Path], undisturbed: Path) -> None:
    """SIGKILL to a worker, then to the driver, then the same command again: bitwise the undisturbed run."""
    workspace = workspaces()
    command = Command(workspace)
    command.wait_for(r"epoch +3/")
    command.workers()[0].send_signal(signal.SIGKILL)
    command.wait_for("workers failed")
    command.wait_for(r"workers run again, from epoch [234] after step \d+")
    command.wait_for(r"epoch +6/")
    command.process.send_signal(signal.SIGKILL)
    command.end()
    again = Command(workspace)
    assert again.end() == 0, again.output
    assert re.search(r"going on with .* in epoch [5678] after step \d+", again.output)
    require_same_end(undisturbed, workspace)
    (run,) = [only_run(workspace)]
    assert not list((run / "checkpoints").glob(".*"))


def test_a_server_that_is_never_up_costs_nothing(workspaces: Callable[[], Path]) -> None:
    workspace = workspaces()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = Command(workspace, "--epochs", "1", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert command.end() == 0, command.output
    assert "records wait in" in command.output and "python -m pnfrec_dist.tracking flush" in command.output


@pytest.mark.slow
def test_a_stopped_worker_is_started_again(workspaces: Callable[[], Path], undisturbed: Path) -> None:
    """SIGSTOP keeps all from the next step; the processes are killed when the time is over."""
    workspace = workspaces()
    command = Command(workspace, "--stall-timeout", "10")
    command.wait_for(r"epoch +4/")
    command.workers()[1].send_signal(signal.SIGSTOP)
    command.wait_for("no progress for 1[0-9] s")
    assert command.end() == 0, command.output
    require_same_end(undisturbed, workspace)


@pytest.mark.slow
def test_too_many_failures_end_the_run_and_it_can_go_on(workspaces: Callable[[], Path], undisturbed: Path) -> None:
    workspace = workspaces()
    command = Command(workspace, "--max-failures", "0")
    command.wait_for(r"epoch +4/")
    command.workers()[0].send_signal(signal.SIGKILL)
    assert command.end() == 1
    again = Command(workspace)
    assert again.end() == 0, again.output
    require_same_end(undisturbed, workspace)
