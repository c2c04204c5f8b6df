"""One rank's batches of an epoch, each made in a thread while the step before it runs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import TrainBatch, train_batch
from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.distributed import World


def epoch_batches(
    data: TrainData, settings: Settings, sampler: ItemSampler | None, world: World, epoch: int, first_step: int
) -> Iterator[tuple[int, list[TrainBatch]]]:
    """(users of the global batch, this rank's share of it in train.accumulation parts) of each step from first_step on.

    sampler: where the loss samples items.
    """
    order = epoch_order(settings.seed, epoch, len(data))
    steps = num_steps(len(data), settings.train.batch_size)

    def make(step: int) -> tuple[int, list[TrainBatch]]:
        users = global_batch(order, step, settings.train.batch_size)
        parts = np.array_split(rank_share(users, world.rank, world.size), settings.train.accumulation)
        draw = sampler.draw(settings.seed, epoch, step) if sampler is not None else None
        batches = [train_batch(data, part, settings.encoder, settings.loss, world.device, draw) for part in parts]
        return len(users), batches

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        pending = pool.submit(make, first_step) if first_step < steps else None
        for step in range(first_step, steps):
            assert pending is not None
            made = pending.result()
            pending = pool.submit(make, step + 1) if step + 1 < steps else None
            yield made
