"""Batches of fixed shapes hold the tokens, targets and contrasts of collate.py's batches."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, History
from pnfrec_dist.data.batches import BatchParts, Sequences, TrainBatch
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.device_batches import DeviceBatches
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.slots import plan_slots

CPU = torch.device("cpu")


def items(batch: TrainBatch, places: Tensor) -> Tensor:
    return batch.items_U[places]


def windows(batch: TrainBatch, side: Sequences) -> Counter[tuple[tuple[int, ...], ...]]:
    """How often there is a user with these (signed inputs, targets at their places), without padding."""
    inputs = items(batch, side.inputs_P)
    if side.is_disliked_P is not None:
        inputs = torch.where(side.is_disliked_P, -inputs, inputs)
    targets = torch.zeros_like(inputs)
    is_real_T = side.is_real_T if side.is_real_T is not None else torch.ones_like(side.targets_T, dtype=torch.bool)
    targets[side.places_T[is_real_T]] = side.targets_T[is_real_T]
    found: Counter[tuple[tuple[int, ...], ...]] = Counter()
    first = 0
    for users, length in side.groups:
        for _ in range(users):
            own = slice(first, first + length)
            count = int((inputs[own] != 0).sum())
            assert not inputs[own][count:].any() and not targets[own][count:].any(), "padding is on the right"
            if count:
                found[tuple(inputs[own][:count].tolist()), tuple(targets[own][:count].tolist())] += 1
            first += length
    return found


def contrasts(batch: TrainBatch) -> Counter[tuple[tuple[int, ...], ...]]:
    """How often there is a user with these (inputs, next positives, sorted negatives)."""
    assert batch.contrast is not None
    inputs, following = items(batch, batch.main.inputs_P), items(batch, batch.contrast.next_P)
    found: Counter[tuple[tuple[int, ...], ...]] = Counter()
    first = user = 0
    for users, length in batch.main.groups:
        for _ in range(users):
            own = slice(first, first + length)
            negatives = sorted(
                items(batch, batch.contrast.negatives_BN[user])[batch.contrast.negatives_BN[user] != 0].tolist()
            )
            count = int((inputs[own] != 0).sum())
            if count:
                found[
                    tuple(inputs[own][:count].tolist()), tuple(following[own][:count].tolist()), tuple(negatives)
                ] += 1
            first, user = first + length, user + 1
    return found


rows_of_items = st.lists(st.lists(st.integers(1, 30), max_size=9), min_size=2, max_size=10)


@pytest.mark.parametrize("num_items", [30, 10_000])
@pytest.mark.parametrize("history", ["positive", "all", "signed", "both"])
@given(rows=rows_of_items, max_length=st.integers(1, 6), seed=st.integers(0, 9))
def test_the_tokens_are_those_of_collate(
    rows: list[list[int]], max_length: int, seed: int, history: History, num_items: int
) -> None:
    """With a small catalog all items are looked up, with a large one those of the batch."""
    rng = np.random.default_rng(seed)
    values = Ragged.of(rows)
    signs = rng.choice([-1, 1], len(values.values)) if history != "positive" else 1
    negative = Ragged.of(rows[::-1]) if history == "positive" else None
    data = TrainData(Ragged(values.offsets, values.values * signs), negative)
    encoder = EncoderSettings(max_length=max_length, history=history)
    wanted = BatchParts(negative=history != "all", contrast=True, likes=history == "both")
    plan = plan_slots(data, encoder, wanted, batch_size=len(rows))
    picked = rng.permutation(len(rows))[: rng.integers(1, len(rows) + 1)]
    placed = plan.place(picked)
    if placed is None:
        return
    batch = DeviceBatches.of(data, plan, encoder, wanted, num_items, CPU).batch(torch.from_numpy(placed))
    expected = train_batch(data, picked, encoder, wanted, CPU)
    assert windows(batch, batch.main) == windows(expected, expected.main)
    assert int(batch.main.num_targets) == expected.main.num_targets
    if wanted.negative:
        assert batch.negative is not None and expected.negative is not None
        assert windows(batch, batch.negative) == windows(expected, expected.negative)
    if wanted.likes:
        assert batch.likes is not None and expected.likes is not None
        assert windows(batch, batch.likes) == windows(expected, expected.likes)
        assert int(batch.likes.num_targets) == expected.likes.num_targets
    assert batch.contrast is not None and expected.contrast is not None
    assert contrasts(batch) == contrasts(expected)
    assert int(batch.contrast.num_tokens) == expected.contrast.num_tokens


def test_all_real_targets_are_in_one_range() -> None:
    """The main side's padding comes first, the negative side's last."""
    rows = [list(range(1, length)) for length in range(2, 40)]
    data = TrainData(Ragged.of(rows), Ragged.of(rows[::-1]))
    encoder, wanted = EncoderSettings(max_length=20), BatchParts(negative=True)
    plan = plan_slots(data, encoder, wanted, 20)
    placed = plan.place(np.arange(10))
    assert placed is not None
    batch = DeviceBatches.of(data, plan, encoder, wanted, 40, CPU).batch(torch.from_numpy(placed))
    assert batch.negative is not None and batch.main.is_real_T is not None and batch.negative.is_real_T is not None
    for is_real_T in (batch.main.is_real_T.flip(0), batch.negative.is_real_T):
        assert is_real_T.tolist() == sorted(is_real_T.tolist(), reverse=True) and not is_real_T.all()
    assert batch.main.targets_T.min() >= 1 and batch.main.targets_T.max() <= 40, "padding has items, too"
