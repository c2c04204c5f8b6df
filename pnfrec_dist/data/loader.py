"""One rank's batches of an epoch, made in a thread while earlier steps run."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import BatchParts, TrainBatch
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.distributed import World

AHEAD = 2
"""Batches that are made ahead: with one, a batch that takes long makes a step wait even if most are fast."""


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

    def epoch(self, epoch: int, first_step: int) -> Iterator[tuple[int, list[TrainBatch]]]:
        """For each step from first_step on: (users of the global batch, this rank's train.accumulation batches)."""
        order = epoch_order(self.settings.seed, epoch, len(self.data))
        steps = num_steps(len(self.data), self.settings.train.batch_size)
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            ahead = range(first_step, min(first_step + AHEAD, steps))
            pending = deque(pool.submit(self._make, order, epoch, step) for step in ahead)
            for step in range(first_step, steps):
                made = pending.popleft().result()
                if step + AHEAD < steps:
                    pending.append(pool.submit(self._make, order, epoch, step + AHEAD))
                yield made

    def _make(self, order: np.ndarray, epoch: int, step: int) -> tuple[int, list[TrainBatch]]:
        settings, world = self.settings, self.world
        users = global_batch(order, step, settings.train.batch_size)
        shares = np.array_split(rank_share(users, world.rank, world.size), settings.train.accumulation)
        draw = self.sampler.draw(settings.seed, epoch, step) if self.sampler is not None else None
        batches = [train_batch(self.data, share, settings.encoder, self.parts, world.device, draw) for share in shares]
        return len(users), batches
