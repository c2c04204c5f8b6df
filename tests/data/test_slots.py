"""Slots hold the users of a batch, each in one slot that is long enough; too large batches do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pnfrec_dist.config.settings import EncoderSettings, History
from pnfrec_dist.data.batches import BatchParts
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.slots import NO_USER, SlotPlan, plan_slots

NEGATIVE = BatchParts(negative=True)


def train_data(lengths: list[int], history: History = "positive") -> TrainData:
    """Users with lists of these lengths; every third item of a signed list is a dislike."""
    rows = [np.arange(1, length + 1) for length in lengths]
    if history == "positive":
        return TrainData(Ragged.of(rows), Ragged.of([row[::-1] for row in rows[::-1]]))
    return TrainData(Ragged.of([np.where(row % 3, row, -row) for row in rows]), None)


def slot_lengths(plan: SlotPlan, side: int) -> np.ndarray:
    groups = plan.sides[side].groups
    return np.repeat([length for _, length in groups], [users for users, _ in groups])


@given(
    lengths=st.lists(st.integers(0, 14), min_size=1, max_size=40),
    max_length=st.integers(1, 8),
    batch_size=st.integers(1, 12),
    data=st.data(),
)
def test_each_user_has_a_slot_that_is_long_enough(
    lengths: list[int], max_length: int, batch_size: int, data: st.DataObject
) -> None:
    plan = plan_slots(train_data(lengths), EncoderSettings(max_length=max_length), NEGATIVE, batch_size)
    size = data.draw(st.integers(1, min(batch_size, len(lengths))))
    rows = np.array(data.draw(st.permutations(range(len(lengths))))[:size])
    placed = plan.place(rows)
    tokens = [np.clip(np.array(of_side) - 1, 0, max_length)[rows] for of_side in (lengths, lengths[::-1])]
    if placed is None:
        longs = [np.count_nonzero(of_side > -(-max_length // 2)) for of_side in tokens]
        too_many = [long > plan.sides[side].groups[-1][0] for side, long in enumerate(longs)]
        assert any(too_many) or any(t.sum() > room for t, room in zip(tokens, plan.room, strict=True))
        return
    assert placed.shape == (2, min(batch_size, len(lengths)))
    for side, slots in enumerate(placed):
        users = slots[slots != NO_USER]
        assert sorted(users) == sorted(rows)
        of_user = np.clip(np.array(lengths if side == 0 else lengths[::-1]) - 1, 0, max_length)
        assert (of_user[users] <= slot_lengths(plan, side)[slots != NO_USER]).all()
        assert of_user[users].sum() <= plan.room[side]


@pytest.mark.parametrize("history", ["positive", "all", "signed"])
def test_almost_every_random_batch_fits(history: History) -> None:
    """4 standard deviations: 1 batch in some 10,000 does not. The room is at most a fifth above the mean."""
    rng = np.random.default_rng(0)
    users = train_data(np.exp(rng.normal(3, 1, 3_000)).astype(int).clip(0, 300).tolist(), history)
    encoder = EncoderSettings(max_length=50, history=history)
    plan = plan_slots(users, encoder, BatchParts(negative=history != "all"), 500)
    placed = [plan.place(rng.permutation(3_000)[:500]) for _ in range(300)]
    assert sum(slots is None for slots in placed) <= 1
    for of_user_U, room in zip(plan.targets_U, plan.room, strict=True):
        assert room <= 1.2 * 500 * of_user_U.mean() + 128


def test_a_signed_history_has_room_for_likes_and_for_dislikes() -> None:
    """Lists of 1 2 -3 4 5 -6: targets are 2 -3 4 5 -6."""
    plan = plan_slots(train_data([6] * 4, "signed"), EncoderSettings(max_length=50, history="signed"), NEGATIVE, 2)
    assert len(plan.sides) == 1 and [of_user[0] for of_user in plan.targets_U] == [3, 2]


def test_a_batch_with_more_targets_than_room_does_not_fit() -> None:
    """One user in a hundred has a long list; no plan has room for a batch of such users alone."""
    plan = plan_slots(train_data([3] * 990 + [200] * 10), EncoderSettings(max_length=50), BatchParts(), 10)
    assert plan.place(np.arange(10)) is not None and plan.place(np.arange(990, 1000)) is None
