"""Two Ray nodes, processes of this machine on loopback, with token authentication: a node is killed, a sweep joins."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.commands import ENVIRONMENT
from helpers.recovery import Command
from helpers.sweeps import LR, Sweep, add_stage, trained_here
from helpers.waiting import wait_until
from mlflow import MlflowClient

from tune.records import ended_and_begun

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

RAY = [
    sys.executable,
    str(Path(__file__).parents[1] / "helpers" / "ray_node.py"),
    "start",
    "--node-ip-address",
    "127.0.0.1",
]


COUNT = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[2]):
    time.sleep(0.1)
"""
"""Ends when this many nodes have joined."""


class Cluster:
    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.files = Path(tempfile.mkdtemp(prefix="ray"))  # paths of sockets must be short
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        port = self.address.rpartition(":")[2]
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._add("--head", "--port", port, "--temp-dir", str(self.files), "--include-dashboard", "false")
        self.add_node()

    def add_node(self) -> None:
        self._add("--address", self.address)

    def _add(self, *arguments: str) -> None:
        """Starts a node and waits until it has joined."""
        node = self._start(*arguments)
        self.nodes.append(node)
        wait_until(
            lambda: any(process.name().startswith("raylet") for process in self._below(node)),
            unless=lambda: node.poll() is not None,
        )
        running = sum(node.poll() is None for node in self.nodes)
        line = [sys.executable, "-c", COUNT, self.address, str(running)]
        subprocess.run(line, env=ENVIRONMENT | self.environment, check=True, capture_output=True, timeout=300)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        line = [*RAY, *arguments, "--num-cpus", "1", "--block"]
        quiet = subprocess.DEVNULL
        env = ENVIRONMENT | self.environment
        return subprocess.Popen(line, env=env, stdout=quiet, stderr=quiet, start_new_session=True)

    def _below(self, node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            return psutil.Process(node.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self, number: int) -> None:
        """Kills a node with all its processes, as if a machine were switched off."""
        node = self.nodes[number]
        for process in [*self._below(node), psutil.Process(node.pid)]:
            with_pid = process.pid
            try:
                os.kill(with_pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()

    def listeners(self) -> set[str]:
        """Addresses that the cluster's processes listen on."""
        found = set()
        for node in self.nodes:
            for process in self._below(node):
                try:
                    connections = process.net_connections("tcp")
                except psutil.Error:
                    continue
                found |= {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
        return found

    def stop(self) -> None:
        for number, node in enumerate(self.nodes):
            if node.poll() is None:
                self.kill(number)
        shutil.rmtree(self.files, ignore_errors=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.stop()


def test_a_killed_node_costs_no_run(prepared_writer: Callable[..., Path], tmp_path: Path, cluster: Cluster) -> None:
    """Training on two nodes continues with one worker, then with two again. Each epoch is recorded once."""
    prepared_writer(tmp_path / "data/prepared/tiny", users=300, items=60)
    flags = ["--ray-address", cluster.address, "--num-workers", "2", "--min-workers", "1"]
    command = Command(tmp_path, *flags, "--epochs", "5000", "--train.patience", "5000", **cluster.environment)
    for line in command.lines():  # Ray may see only one node at first, and the other one a minute later
        if re.match(r"epoch +[2-9]", line) and "(1 of 2)" not in command.output.rpartition("workers run")[2]:
            break
    assert "plan: 1 to 2 workers" in command.output
    assert cluster.listeners() <= {"127.0.0.1", "::1"}
    cluster.kill(1)
    command.wait_for("workers failed")
    command.wait_for(r"workers run again \(1 of 2\), from epoch \d+ after step \d+")
    command.wait_for("epoch ")
    cluster.add_node()
    command.wait_for(r"workers run again \(2 of 2\), from epoch \d+ after step \d+")
    command.wait_for("epoch ")
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 130, command.output
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(["1"])
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert run.info.status == "KILLED" and steps == list(range(1, len(steps) + 1)) and len(steps) > 3


def test_a_cluster_does_not_take_who_has_no_token(
    prepared_writer: Callable[..., Path], tmp_path: Path, cluster: Cluster
) -> None:
    prepared_writer(tmp_path / "data/prepared/tiny", users=300, items=60)
    other = cluster.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = Command(tmp_path, "--ray-address", cluster.address, **other)
    assert command.end() == 2
    assert re.search(r"error: could not join Ray at --ray-address .*RAY_AUTH_TOKEN", command.output)


def test_a_sweep_joins_a_cluster(prepared_writer: Callable[..., Path], tmp_path: Path, cluster: Cluster) -> None:
    """A sweep with a trial on each node, then one with a worker on each: the first one has freed all resources."""
    prepared_writer(tmp_path / "data/prepared/tiny")
    flags = ["--epochs", "3", "--encoder.hidden-size", "8"]
    joined = [*flags, "--ray-address", cluster.address, "--stages", "rates"]
    add_stage(tmp_path, "rates", LR.format(values=[0.001, 0.01, 0.03]))
    output = Sweep(tmp_path, *joined, **cluster.environment).succeed()
    assert "trials: 2 trials at a time, each with 1 worker" in output and "test of the winner:" in output
    for record in ended_and_begun(tmp_path / "runs/tune-tiny-rates/rates")[0]:
        scored = trained_here(tmp_path, ["--model", "sasrec_p", *flags], record.point, tmp_path / record.name)
        assert record.best_score == pytest.approx(scored, abs=1e-6)
    both = [*joined, "--workers-per-trial", "2", "--name", "both"]
    output = Sweep(tmp_path, *both, **cluster.environment).succeed()
    assert "trials: one trial at a time, each with 2 workers" in output and output.count("finished ") == 3
    assert cluster.listeners() <= {"127.0.0.1", "::1"}
