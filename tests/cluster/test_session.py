"""Starting or joining Ray: the errors if that fails, and the environment that the process gets."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from pnfrec_dist.cluster.session import planned_workers, prepare_process, ray_cluster
from pnfrec_dist.cluster.worker_plan import WorkerOptions, this_machine
from pnfrec_dist.errors import InputError, RunError


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an overloaded machine, Ray raises a plain Exception with several lines."""

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis can happen when ...")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have left one running
    with (
        pytest.raises(
            RunError,
            match=r"^Ray did not start on this machine: The current node timed out during startup; if it is busy, try",
        ),
        ray_cluster(WorkerOptions()),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("head", "it must be <host>:<port> or auto"),
        ("head:", "it must be"),
        ("127.0.0.1:{port}", "nothing answers"),
    ],
)
def test_an_address_where_no_ray_is_found_is_refused_at_once(address: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(InputError, match=said), ray_cluster(WorkerOptions(address.format(port=free))):
        pass


def test_the_process_gets_what_ray_train_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that the user has set are kept."""
    health, start = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    for options, own in (
        (WorkerOptions(), {start: "300"}),
        (WorkerOptions(stall_timeout=7.0), {start: "300", health: "7.0"}),
        (WorkerOptions(stall_timeout=7.0, min_workers=1), {start: "60", health: "7.0"}),
    ):
        monkeypatch.setattr(os, "environ", {"RAY_USAGE_STATS_ENABLED": "1"})
        prepare_process(options)
        assert {name: os.environ[name] for name in (health, start) if name in os.environ} == own
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_plan_for_this_machine_needs_no_ray(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    with planned_workers(WorkerOptions(num_workers=workers, num_gpus=0)) as plan:
        assert (plan.num_workers, plan.in_this_process) == (workers, workers == 1)
    with ray_cluster(WorkerOptions(num_workers=workers), dry_run=True) as nodes:
        assert nodes == [this_machine(workers)]


@pytest.mark.integration
@pytest.mark.usefixtures("ray_here")
def test_a_ray_that_the_process_has_is_used_and_left_running() -> None:
    own = ray.get_runtime_context().get_node_id()
    with ray_cluster(WorkerOptions(num_workers=64)) as nodes:
        assert len(nodes) == 1 and nodes[0].cpus < 64
    assert ray.get_runtime_context().get_node_id() == own


def test_where_the_process_has_a_ray_the_plan_is_for_its_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single GPU worker runs in this process only if this machine has a GPU."""
    machines = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    for wanted, alone in ((WorkerOptions(num_gpus=4), False), (WorkerOptions(num_gpus=1), torch.cuda.is_available())):
        with planned_workers(wanted) as plan:
            assert (plan.num_workers, plan.use_gpu) == (wanted.num_gpus, True)
            assert plan.in_this_process == alone


SHORT = """
import ray
from pnfrec_dist.cluster.session import WorkerOptions, ray_cluster
with ray_cluster(WorkerOptions(num_workers=1)):
    print(ray.get(ray.remote(lambda: "answered").remote()))
"""


@pytest.mark.slow
def test_a_long_temporary_directory_does_not_keep_ray_from_starting(tmp_path: Path) -> None:
    """As on machines of batch systems: sockets have short paths."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(long)}
    line = [sys.executable, "-c", SHORT]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "answered\n", done.stderr
    named = environment | {"RAY_TMPDIR": str(long)}
    refused = subprocess.run(line, env=named, capture_output=True, text=True, check=False)
    assert "it must have at most" in refused.stderr and "set it to a shorter directory" in refused.stderr
