"""Which rank reads which users. Global batches depend on seed, epoch, step and batch size, not on the worker count."""

import numpy as np

from pnfrec_dist.errors import InputError


def epoch_order(seed: int, epoch: int, num_users: int) -> np.ndarray:
    """The order in which epoch `epoch` visits all users: a permutation of 0..num_users - 1."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_users)


def num_steps(num_users: int, batch_size: int) -> int:
    """Steps of one epoch; the last global batch may be smaller."""
    return -(-num_users // batch_size)


def global_batch(order: np.ndarray, step: int, batch_size: int) -> np.ndarray:
    """The users of global step `step`."""
    return order[step * batch_size : (step + 1) * batch_size]


def rank_share(rows: np.ndarray, rank: int, size: int) -> np.ndarray:
    """The contiguous part of `rows` that one rank reads; parts differ by at most one row and may be empty."""
    bounds = np.arange(size + 1) * len(rows) // size
    return rows[bounds[rank] : bounds[rank + 1]]


def require_enough_users(num_users: int, batch_size: int, num_workers: int) -> None:
    """Raises InputError if some worker would have no user in a full batch."""
    if num_users < num_workers:
        raise InputError(f"{num_users} training users are fewer than {num_workers} workers; lower --num-workers")
    if batch_size < num_workers:
        raise InputError(
            f"batches of {batch_size} users cannot be spread over {num_workers} workers; "
            f"raise --train.batch-size or lower --num-workers"
        )
