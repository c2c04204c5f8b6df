"""The process group for all other modules: rank, size, device, exchanges over ranks, seeds. Does not import Ray."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

# torch 2.13 renamed them.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class World:
    """One rank of `size` ranks. With size 1, no process group is needed, and every exchange returns its input."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether no exchange is needed."""
        return self.size == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, the same on each; `tensor` is overwritten."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over ranks, the same on each; `tensor` is overwritten."""
        if not self.is_alone:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def sizes(self, length: int) -> list[int]:
        """Every rank's length, in order of rank."""
        if self.is_alone:
            return [length]
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = length
        return self.sum(lengths).tolist()

    def gather_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """The ranks' rows one after another, the same on each; sizes: number of rows of each rank."""
        if self.is_alone:
            return rows
        longest = max(sizes)
        padded = F.pad(rows, [0, 0] * (rows.dim() - 1) + [0, longest - len(rows)]).contiguous()
        gathered = padded.new_empty(self.size * longest, *rows.shape[1:])
        _all_gather(gathered, padded)
        return torch.cat([gathered[r * longest : r * longest + size] for r, size in enumerate(sizes)])

    def sum_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """`rows` has a part for every rank, one after another: returns this rank's part, summed over ranks."""
        if self.is_alone:
            return rows
        longest = max(sizes)
        padded = [F.pad(part, [0, 0] * (rows.dim() - 1) + [0, longest - len(part)]) for part in rows.split(sizes)]
        own = rows.new_empty(longest, *rows.shape[1:])
        _reduce_scatter(own, torch.cat(padded))
        return own[: sizes[self.rank]]

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Sends the first send[0] rows to rank 0, the next send[1] to rank 1, ...; returns what the ranks sent here."""
        if self.is_alone:
            return rows
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send)
        return received

    def gather(self, value: Any) -> list[Any]:
        """Every rank's small value, in order of rank."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if not self.is_alone:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients summed over ranks during backward."""
        if self.is_alone:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices)
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    @contextlib.contextmanager
    def gradients_stay_here(self, wrapped: nn.Module) -> Iterator[None]:
        """In this context, backward adds to gradients without summing them over ranks."""
        if isinstance(wrapped, DistributedDataParallel):
            with wrapped.no_sync():
                yield
        else:
            yield


def _sum_bucket(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sums gradients like DistributedDataParallel, but without dividing them by the number of ranks."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()  # type: ignore[union-attr]
    return future.then(lambda done: done.value()[0])


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets the number of torch's threads until the context ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def initial_generator(seed: int) -> torch.Generator:
    """The generator of the initial weights, equal on every rank."""
    return torch.Generator().manual_seed(seed)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seeds dropout of one step of one rank, so that a resumed run makes the same random draws."""
    state = np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
