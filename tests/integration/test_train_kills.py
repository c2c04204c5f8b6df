"""Training with real failures: killed workers, a killed driver, a worker that hangs, an MLflow that never answers."""

import random
import re
import secrets
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.recovery import Command, only_run, require_same_end

Soak = Callable[[str, str, str], None]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def workspaces(prepared_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes directories that contain the same data set of 300 users."""
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


@pytest.mark.slow
def test_killed_workers_and_driver_change_nothing(workspaces: Callable[[], Path], undisturbed: Path) -> None:
    """SIGKILL to a worker, then to the driver, then the same command again: bitwise equal to an undisturbed run."""
    workspace = workspaces()
    command = Command(workspace)
    command.wait_for(r"epoch +3/")
    command.workers()[0].send_signal(signal.SIGKILL)
    command.wait_for("workers failed")
    command.wait_for(r"workers run again \(2 of 2\), from epoch [234] after step \d+")
    command.wait_for(r"epoch +6/")
    command.process.send_signal(signal.SIGKILL)
    command.end()
    again = Command(workspace)
    assert again.end() == 0, again.output
    assert re.search(r"continuing .* in epoch [5678] after step \d+", again.output)
    require_same_end(undisturbed, workspace)
    (run,) = [only_run(workspace)]
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_server_that_is_never_up_costs_nothing_and_no_secret_is_told(workspaces: Callable[[], Path]) -> None:
    """Secrets in the environment and in the server's address reach no output, checkpoint, record or log of Ray."""
    workspace, secret = workspaces(), secrets.token_hex(12)
    ray_files = Path(tempfile.mkdtemp(prefix="ray"))  # paths of sockets must be short
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {
        "MLFLOW_TRACKING_URI": f"http://someone:{secret}@127.0.0.1:{port}",
        "MLFLOW_TRACKING_TOKEN": secret,
        "AWS_SECRET_ACCESS_KEY": secret,
        "MY_PASSWORD": secret,
        "RAY_TMPDIR": str(ray_files),
    }
    command = Command(workspace, "--epochs", "1", **environment)
    assert command.end() == 0, command.output
    assert "records wait in" in command.output and "python -m pnfrec_dist.tracking flush" in command.output
    assert secret not in command.output
    written = [path for base in (workspace, ray_files) for path in base.rglob("*") if path.is_file()]
    assert len(list(ray_files.rglob("*.log"))) > 1 and any(path.name == "tracking.jsonl" for path in written)
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    shutil.rmtree(ray_files)


@pytest.mark.slow
def test_a_stopped_worker_is_started_again(workspaces: Callable[[], Path], undisturbed: Path) -> None:
    """After SIGSTOP no worker can take the next step. The processes are killed after the stall timeout."""
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


def disturb(
    make: Callable[[], Path], undisturbed: Path, number: signal.Signals, times: int, *flags: str
) -> list[float]:
    """Sends a signal to a random worker of `times` runs, at random moments. Returns seconds until each trains again.

    All of them must end like the undisturbed run.
    """
    rng, seconds = random.Random(times), []
    while len(seconds) < times:
        workspace = make()
        command = Command(workspace, *flags)
        command.wait_for(r"epoch +1/")
        time.sleep(rng.random() * 6)
        workers = command.workers()
        if len(workers) == 2:  # otherwise it has already ended
            rng.choice(workers).send_signal(number)
            sent = time.monotonic()
            command.wait_for("workers run again")
            seconds.append(time.monotonic() - sent)
            assert command.end() == 0, command.output
            require_same_end(undisturbed, workspace)
        command.end()
        shutil.rmtree(workspace)
    return seconds


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_twenty_kills_of_a_worker(workspaces: Callable[[], Path], undisturbed: Path, soak: Soak) -> None:
    seconds = disturb(workspaces, undisturbed, signal.SIGKILL, 20)
    soak("kill -9 of one of 2 workers", f"{len(seconds)}/20 end bit for bit as the undisturbed run", "20/20")
    soak("seconds until they train again", f"{statistics.median(seconds):.0f}, at most {max(seconds):.0f}", "< 20")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_stopped_workers(workspaces: Callable[[], Path], undisturbed: Path, soak: Soak) -> None:
    seconds = disturb(workspaces, undisturbed, signal.SIGSTOP, 5, "--stall-timeout", "10")
    within = sum(value <= 70 for value in seconds)
    found = f"{within}/5 train again within {max(seconds):.0f} s"
    soak("SIGSTOP of a worker, stall timeout 10 s", found, "5/5 in 70 s")
    assert within == 5
