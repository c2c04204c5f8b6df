"""The process group as the rest sees it: rank, size, device, sums over ranks, seeds. No Ray in here."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """One rank of `size` ranks. With size 1 no process group is needed."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, the same on each; `tensor` is overwritten."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over ranks during backward."""
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)


def initial_generator(seed: int) -> torch.Generator:
    """The generator of the initial weights, equal on every rank."""
    return torch.Generator().manual_seed(seed)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seeds dropout of one step of one rank, so that a resumed run draws what an undisturbed one draws."""
    state = np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
