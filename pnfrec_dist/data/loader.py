"""One rank's batches of an epoch, made in a thread while earlier steps run."""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import BatchParts, TrainBatch
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.slots import SlotPlan
from pnfrec_dist.distributed import World

AHEAD = 2
"""Batches that are made ahead: with one, a batch that takes long makes a step wait even if most are fast."""

MISFIT_PARTS = 4
"""A batch that does not fit the slots is made in so many parts: a recorded step keeps its memory meanwhile."""


@dataclass(frozen=True)
class Loader:
    """Makes a rank's batches."""

    data: TrainData
    settings: Settings
    parts: BatchParts
    """the parts that the loss needs"""
    sampler: ItemSampler | None
    """None unless the loss samples items"""
    world: World
    slots: SlotPlan | None = None
    """given if the device makes batches of fixed shapes"""

    def epoch(self, epoch: int, first_step: int) -> Iterator[tuple[int, list[TrainBatch] | Tensor]]:
        """For each step from first_step on: (users of the global batch, this rank's train.accumulation batches; or the
        users in their slots if they fit)."""
        order = epoch_order(self.settings.seed, epoch, len(self.data))
        steps = num_steps(len(self.data), self.settings.train.batch_size)
        device = self.world.device
        # On the stream of the steps, each copy to the GPU would wait for the step before.
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            ahead = range(first_step, min(first_step + AHEAD, steps))
            pending = deque(pool.submit(self._make, order, epoch, step, stream) for step in ahead)
            for step in range(first_step, steps):
                users, batches, is_copied = pending.popleft().result()
                if step + AHEAD < steps:
                    pending.append(pool.submit(self._make, order, epoch, step + AHEAD, stream))
                if is_copied is not None and not isinstance(batches, Tensor):
                    torch.cuda.current_stream(device).wait_event(is_copied)
                    for tensor in tensors_of(batches):  # its memory is not given away before these steps are done
                        tensor.record_stream(torch.cuda.current_stream(device))
                yield users, batches

    def _make(
        self, order: np.ndarray, epoch: int, step: int, stream: torch.cuda.Stream | None
    ) -> tuple[int, list[TrainBatch] | Tensor, torch.Event | None]:
        settings, world = self.settings, self.world
        users = global_batch(order, step, settings.train.batch_size)
        if self.slots is not None and (placed := self.slots.place(users)) is not None:
            rows_SB = torch.from_numpy(placed)
            return len(users), rows_SB.pin_memory() if stream is not None else rows_SB, None
        parts = settings.train.accumulation if self.slots is None else MISFIT_PARTS
        shares = np.array_split(rank_share(users, world.rank, world.size), parts)
        draw = self.sampler.draw(settings.seed, epoch, step) if self.sampler is not None else None
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            batches = [
                train_batch(self.data, share, settings.encoder, self.parts, world.device, draw) for share in shares
            ]
        return len(users), batches, stream.record_event() if stream is not None else None


def tensors_of(value: object) -> Iterator[Tensor]:
    """All tensors in dataclasses and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from tensors_of(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name))
