"""Steps on a CPU get the memory of the step before, without asking the system again."""

import os
import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys
import torch
from pnfrec_dist.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return [torch.ones(2**21) for _ in range(30)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    """With a threshold of 4 MiB at the start, from which on glibc gives memory back."""
    own = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True, env=own)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of Linux")
def test_freed_memory_is_used_again() -> None:
    pages = 5 * 30 * 2**23 // resource.getpagesize()
    assert page_faults("return") > pages / 2, "without it, each tensor's pages are new"
    assert page_faults("keep") < pages / 10


CAPACITIES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
KERNELS = """
import sys
import pnfrec_dist
import torch

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

rows, weights = torch.randn(4_000, 32).bfloat16(), torch.randn(32, 32).bfloat16()
for count in range(1_000, 1_100):
    rows[:count] @ weights
before = resident()
for count in range(1_100, 1_700):
    rows[:count] @ weights
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kernels_of_ever_new_shapes_do_not_fill_the_memory() -> None:
    """600 new shapes; where torch makes a kernel for each, it would keep them all."""

    def growth(environment: dict[str, str]) -> int:
        own = {name: value for name, value in os.environ.items() if name not in CAPACITIES} | environment
        done = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, check=True, env=own)
        return int(done.stdout)

    assert growth({}) <= max(growth(dict.fromkeys(CAPACITIES, "1024")) / 4, 20)


def test_threads_wait_for_each_other_only_briefly() -> None:
    """Unless the user has said how."""

    def spins(environment: dict[str, str]) -> str:
        script = "import os, pnfrec_dist; print(os.environ.get('GOMP_SPINCOUNT'))"
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        own = {name: value for name, value in os.environ.items() if name not in names} | environment
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=own)
        return done.stdout.strip()

    assert spins({}) == "10000"
    assert spins({"GOMP_SPINCOUNT": "5"}) == "5"
    assert spins({"OMP_WAIT_POLICY": "active"}) == "None"
