"""Every exchange of World, through gloo and NCCL, between a rank and itself: the result is that without an exchange.

More ranks are tested with gloo in training/test_step.py and training/test_loop_ranks.py.
"""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from helpers.exchanges import recorded_calls
from helpers.ranks import spawn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pnfrec_dist.distributed import World

NO_NCCL = not (torch.cuda.is_available() and dist.is_available() and dist.is_nccl_available())
BACKENDS = [
    ("gloo", "cpu"),
    pytest.param("gloo", "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")),
    pytest.param("nccl", "cuda", marks=pytest.mark.skipif(NO_NCCL, reason="no GPU with NCCL here")),
]


class WithItself(World):
    """One rank that exchanges with itself, through the process group."""

    @property
    def is_alone(self) -> bool:
        return False


def tensors(device: torch.device) -> list[Tensor]:
    """Of the dtypes and shapes that training and evaluation exchange; also without rows."""
    made = [
        torch.arange(6, dtype=torch.float32).view(3, 2) / 7,
        torch.arange(4, dtype=torch.float64) - 1.5,
        torch.arange(5),
        torch.tensor([[0, 1, 255]], dtype=torch.uint8),
        torch.tensor(2.5, dtype=torch.float64),
        torch.zeros(0, 4),
    ]
    return [tensor.to(device) for tensor in made]


def exchange_all(world: World) -> None:
    itself, alone = WithItself(world.rank, world.size, world.device), World(device=world.device)
    of_tensors: dict[str, Callable[[World, Tensor], Tensor]] = {
        "all_reduce": lambda world, tensor: world.sum(tensor),
        "all_reduce of maxima": lambda world, tensor: world.max(tensor),
    }
    of_rows: dict[str, Callable[[World, Tensor], Tensor]] = {
        "all_gather": lambda world, rows: world.gather_rows(rows, [len(rows)]),
        "reduce_scatter": lambda world, rows: world.sum_rows(rows, [len(rows)]),
        "all_to_all": lambda world, rows: world.exchange(rows, [len(rows)], [len(rows)]),
    }
    for name, call in {**of_tensors, **of_rows}.items():
        for tensor in tensors(world.device):
            if name in of_tensors or tensor.dim():
                with recorded_calls() as calls:
                    found = call(itself, tensor.clone())
                assert [(c.name, c.bytes) for c in calls] == [(name.split()[0], tensor.nbytes)]
                expected = call(alone, tensor.clone())
                assert torch.equal(found, expected) and found.dtype == expected.dtype, name
                assert found.device == expected.device, name
    with recorded_calls() as calls:
        assert itself.sizes(7) == alone.sizes(7) == [7]
        assert itself.gather({"a": None}) == alone.gather({"a": None}) == [{"a": None}]
        itself.barrier()
    assert [call.name for call in calls] == ["all_reduce", "all_gather_object", "barrier"]


def gradients(world: World) -> tuple[nn.Module, list[Tensor]]:
    """(The wrapped model, its gradients after two parts of a step), in the order of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(world.device)
    wrapped = world.wrap(model)
    inputs = torch.randn(5, 3, device=world.device)
    with world.gradients_stay_here(wrapped):
        wrapped(inputs).square().sum().backward()
    wrapped(inputs + 1).square().sum().backward()
    return wrapped, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def sum_gradients(world: World) -> None:
    itself = WithItself(world.rank, world.size, world.device)
    with recorded_calls() as calls:
        wrapped, found = gradients(itself)
    assert isinstance(wrapped, DistributedDataParallel)
    plain, expected = gradients(World(device=world.device))
    assert not isinstance(plain, DistributedDataParallel)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    sent = Counter[str]()
    for call in calls:
        sent[call.name] += call.bytes
    assert sent == {"all_reduce": sum(tensor.nbytes for tensor in expected)}, "once, after the second part"


@pytest.mark.parametrize("work", [exchange_all, sum_gradients])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_what_a_rank_sends_to_itself_comes_back(backend: str, device: str, work: Callable[[World], None]) -> None:
    spawn(1, work, device=device, backend=backend)
