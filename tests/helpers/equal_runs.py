"""What tests of runs that end bitwise equal share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from pnfrec_dist.training.checkpoint import read_state


@contextlib.contextmanager
def repeatable_sums(device: torch.device) -> Iterator[None]:
    """On a GPU, torch uses only algorithms whose results repeat, and raises an error that names any other. On a CPU,
    training needs no such switch."""
    torch.use_deterministic_algorithms(device.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def require_equal_checkpoints(one: Path, other: Path) -> None:
    """All tensors are bitwise equal, and so is the state of the run, except for times."""
    names = sorted(file.name for file in one.glob("*.safetensors"))
    assert {"model.safetensors", "optimizer.safetensors"} < set(names)
    assert names == sorted(file.name for file in other.glob("*.safetensors"))
    for name in names:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    first, second = (read_state(path)["train_state"] for path in (one, other))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
