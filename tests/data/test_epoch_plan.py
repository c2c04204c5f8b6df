import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnfrec_dist.data.epoch_plan import epoch_order, global_batch, num_steps, rank_share, require_enough_users
from pnfrec_dist.errors import InputError


@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(1, 500),
    users=st.integers(1, 300),
    batch=st.integers(1, 64),
    size=st.integers(1, 7),
)
def test_every_user_is_read_once_an_epoch_and_ranks_split_the_global_batch(
    seed: int, epoch: int, users: int, batch: int, size: int
) -> None:
    order = epoch_order(seed, epoch, users)
    read = []
    for step in range(num_steps(users, batch)):
        rows = global_batch(order, step, batch)
        shares = [rank_share(rows, rank, size) for rank in range(size)]
        assert np.array_equal(np.concatenate(shares), rows)
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        read.append(rows)
    assert sorted(np.concatenate(read)) == list(range(users))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert np.array_equal(epoch_order(1, 2, 50), epoch_order(1, 2, 50))
    assert not np.array_equal(epoch_order(1, 2, 50), epoch_order(1, 3, 50))
    assert not np.array_equal(epoch_order(1, 2, 50), epoch_order(2, 2, 50))


def test_too_many_workers_is_said_before_anything_starts() -> None:
    require_enough_users(10, 10, 10)
    with pytest.raises(InputError, match="10 training users are fewer than 11 workers"):
        require_enough_users(10, 100, 11)
    with pytest.raises(InputError, match="batches of 3 users cannot be spread over 4 workers"):
        require_enough_users(100, 3, 4)
