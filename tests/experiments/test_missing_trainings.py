"""How many trainings of a reproduction run at a time on made machines."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_training import SETTINGS

from pnfrec_dist.cluster.worker_plan import Node
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.missing_trainings import may_run_concurrently, plan_trainings
from pnfrec_dist.experiments.reproduction_plan import Training
from pnfrec_dist.training import memory_plan


@pytest.fixture
def planned(
    prepared_writer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """planned(node, at_a_time, number of trainings, GiB of a GPU, **changed settings) -> the plan as text."""
    data = open_prepared(prepared_writer(tmp_path / "tiny"))
    monkeypatch.setattr(memory_plan, "LIBRARIES", 600 * 2**20)

    def text(node: Node, at_a_time: int | None, count: int = 30, gib: float = 80, **changes: int) -> str:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(node.gpus))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(gib * 2**30))
        )
        settings = dataclasses.replace(SETTINGS, **changes)
        return str(plan_trainings([Training(settings, "a")] * count, data, [node], at_a_time))

    return text


def test_gpus_are_shared_as_far_as_memory_and_cpus_allow(planned: Callable[..., str]) -> None:
    start = "trainings at a time, each with 1 worker,"
    assert planned(Node(16, 1), None) == f"16 {start} 0.0625 GPU, 1 CPU"
    assert planned(Node(16, 1), None, 8) == f"8 {start} 0.125 GPU, 2 CPUs"
    assert planned(Node(16, 1), None, gib=5) == f"3 {start} 0.3333 GPU, 5 CPUs"
    assert planned(Node(16, 4), None, gib=2) == f"4 {start} 1 GPU"
    assert planned(Node(16, 1), None, num_gpus=1) == f"16 {start} 0.0625 GPU, 1 CPU"
    assert planned(Node(16, 2), 6) == f"6 {start} 0.3333 GPU, 2 CPUs"
    assert planned(Node(16, 4), None, 1) == "one training at a time, each with 1 worker, 1 GPU"


def test_otherwise_trainings_run_in_turn(planned: Callable[..., str]) -> None:
    assert planned(Node(16), None) == "None", "on CPUs"
    assert planned(Node(16, 1), None, num_workers=1) == "None", "CPU workers are asked for"
    assert planned(Node(16, 1), None, 1) == "None", "one on the only GPU"
    assert planned(Node(16, 1), None, gib=2) == "None", "each fills the only GPU"
    assert planned(Node(16, 4), None, gib=1) == "None", "several GPUs may hold what one does not"


def test_on_cpus_as_many_as_asked_for_each_with_one_worker(planned: Callable[..., str]) -> None:
    assert planned(Node(16), 4) == "4 trainings at a time, each with 1 worker, 4 CPUs"
    assert planned(Node(16, 1), 4, num_workers=1) == "4 trainings at a time, each with 1 worker, 4 CPUs"
    assert planned(Node(16), 4, 1) == planned(Node(16), 4), "threads round as in the command that left one"


@pytest.mark.parametrize("node", [Node(2), Node(2, 1)])
def test_more_than_there_are_cpus_are_refused(planned: Callable[..., str], node: Node) -> None:
    with pytest.raises(
        InputError, match=r"^--at-a-time is 3, but only 2 trainings fit .* each needs a CPU.*; lower it$"
    ):
        planned(node, 3)


def test_several_workers_and_several_trainings_exclude_each_other() -> None:
    two = dataclasses.replace(SETTINGS, num_workers=2)
    with pytest.raises(InputError, match=r"--at-a-time is 2, but .*; leave it out, or leave out --num-workers 2$"):
        may_run_concurrently(2, two)
    with pytest.raises(InputError, match="leave out --num-gpus 4"):
        may_run_concurrently(2, dataclasses.replace(SETTINGS, num_gpus=4))
    assert not may_run_concurrently(None, two) and not may_run_concurrently(1, two)
    one, joined = (dataclasses.replace(SETTINGS, num_workers=1, ray_address=address) for address in ("", "head:6379"))
    assert may_run_concurrently(2, one) and may_run_concurrently(None, one)
    assert may_run_concurrently(2, joined) and not may_run_concurrently(None, joined)
