from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnfrec_dist.config.settings import EncoderSettings, History, SampledSettings
from pnfrec_dist.data.batches import BatchParts, Groups
from pnfrec_dist.data.collate import MARKS_PER_ID, MAX_GROUPS, _distinct, _grouped, history_batch, train_batch
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged, signed

CPU = torch.device("cpu")


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows], dtype=np.int64)])
    return Ragged(offsets, np.array([i for r in rows for i in r], dtype=np.int32))


@given(rows=st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=1, max_size=8), count=st.integers(1, 15))
def test_newest_equals_slicing_each_row(rows: list[list[int]], count: int) -> None:
    picked = np.arange(len(rows))[::-1]
    ids, lengths = ragged(rows).newest(picked, count)
    wanted = [rows[i][-count:] for i in picked]
    assert ids.shape[1] == max(1, *(len(w) for w in wanted)) if len(wanted) > 1 else ids.shape[1] >= 1
    for row, expected, length in zip(ids, wanted, lengths, strict=True):
        assert row[:length].tolist() == expected
        assert not row[length:].any()


def both_kinds(rows: list[list[tuple[int, bool]]]) -> Ragged:
    """rows: (item, whether it is liked)."""
    items, flags = (ragged([[entry[side] for entry in row] for row in rows]) for side in (0, 1))
    return signed(items, flags)


def by_user(tokens: list[int], groups: Groups) -> list[list[int]]:
    """Splits a packed axis into one list for each user."""
    rows = []
    for users, length in groups:
        for _ in range(users):
            row, tokens = tokens[:length], tokens[length:]
            rows.append(row)
    assert not tokens
    return rows


def test_train_batch_by_hand() -> None:
    """The newest 3 items of two users. With windows of at most 2 inputs, every length is a separate group."""
    data = TrainData(ragged([[1, 2, 3, 4], [5, 6]]), ragged([[7], [8, 9]]))
    batch = train_batch(
        data, np.array([0, 1]), EncoderSettings(max_length=2), BatchParts(negative=True, contrast=True), CPU
    )
    items = batch.items_U
    assert items.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert batch.main.groups == ((1, 1), (1, 2)), "the shorter user first"
    assert items[batch.main.inputs_P].tolist() == [5, 2, 3]
    assert batch.main.places_T.tolist() == [0, 1, 2] and batch.main.targets_T.tolist() == [6, 3, 4]
    assert batch.negative is not None and batch.contrast is not None
    assert batch.negative.groups == ((1, 1),), "one item predicts nothing"
    assert items[batch.negative.inputs_P].tolist() == [8] and batch.negative.targets_T.tolist() == [9]
    assert items[batch.contrast.next_P].tolist() == [6, 3, 4]
    assert items[batch.contrast.negatives_BN].tolist() == [[8, 9], [7, 0]]


@given(rows=st.lists(st.lists(st.integers(1, 99), max_size=40), min_size=1, max_size=12), max_length=st.integers(1, 30))
def test_train_batch_holds_every_users_newest_items(rows: list[list[int]], max_length: int) -> None:
    """Each window occurs once, targets are the next items, and only shorter users of a group are padded."""
    settings, picked = EncoderSettings(max_length=max_length), np.arange(len(rows))[::-1]
    batch = train_batch(TrainData(ragged(rows), ragged(rows[::-1])), picked, settings, BatchParts(contrast=True), CPU)
    assert batch.contrast is not None
    side, contrast = batch.main, batch.contrast
    assert len(side.groups) <= MAX_GROUPS["cpu"]
    targets = torch.zeros_like(side.inputs_P)
    targets[side.places_T] = side.targets_T
    assert torch.equal(batch.items_U[contrast.next_P], targets)
    found = [
        ([i for i in inputs if i], [i for i in targets if i], [i for i in negatives if i])
        for inputs, targets, negatives in zip(
            by_user(batch.items_U[side.inputs_P].tolist(), side.groups),
            by_user(targets.tolist(), side.groups),
            batch.items_U[contrast.negatives_BN].tolist(),
            strict=True,
        )
    ]
    window = max_length + 1
    expected = [
        (rows[u][-window:][:-1], rows[u][-window:][1:], rows[::-1][u][-window:]) for u in picked if len(rows[u]) > 1
    ]
    assert sorted(found) == sorted(expected)
    real = sum(len(inputs) for inputs, _, _ in expected)
    assert len(side.inputs_P) - real <= len(expected) * (-(-max_length // MAX_GROUPS["cpu"]) - 1)


def test_contrast_of_a_history_of_both_kinds_by_hand() -> None:
    """Likes 1, 3, 4, 6 and dislikes 2, 5: the next like after 1 is 3, after 3 it is 4, after 4 it is 6. The second
    user's window starts with a dislike, and no like follows its only like."""
    data = TrainData(ragged([[1, -2, 3, 4, -5, 6], [-7, 8, -9]]), None)
    encoder = EncoderSettings(history="all", max_length=3)
    batch = train_batch(data, np.array([0, 1]), encoder, BatchParts(contrast=True), CPU)
    contrast = batch.contrast
    assert contrast is not None and batch.negative is None
    assert by_user(batch.items_U[batch.main.inputs_P].tolist(), batch.main.groups) == [[7, 8], [1, 2, 3, 4, 5]]
    assert by_user(batch.items_U[contrast.next_P].tolist(), batch.main.groups) == [[0, 0], [3, 0, 4, 6, 0]]
    assert batch.items_U[contrast.negatives_BN].tolist() == [[7, 9], [2, 5]]
    assert contrast.num_tokens == 3


over_histories_of_both_kinds = given(
    rows=st.lists(st.lists(st.tuples(st.integers(1, 99), st.booleans()), max_size=30), min_size=1, max_size=8),
    max_length=st.integers(1, 12),
    history=st.sampled_from(["all", "signed"]),
)


@over_histories_of_both_kinds
def test_contrast_of_histories_of_both_kinds(
    rows: list[list[tuple[int, bool]]], max_length: int, history: History
) -> None:
    """Every window equals a plain search for the next like and the dislikes."""
    data = TrainData(both_kinds(rows), None)
    encoder, picked = EncoderSettings(history=history, max_length=max_length), np.arange(len(rows))[::-1]
    batch = train_batch(data, picked, encoder, BatchParts(contrast=True), CPU)
    assert batch.contrast is not None
    found = [
        ([i for i in inputs if i], following[: sum(i > 0 for i in inputs)], [i for i in negatives if i])
        for inputs, following, negatives in zip(
            by_user(batch.items_U[batch.main.inputs_P].tolist(), batch.main.groups),
            by_user(batch.items_U[batch.contrast.next_P].tolist(), batch.main.groups),
            batch.items_U[batch.contrast.negatives_BN].tolist(),
            strict=True,
        )
    ]
    expected = []
    for user in picked:
        window = rows[user][-(2 * max_length + 1) :]
        if len(window) > 1:
            following = [
                next((item for item, liked in window[place + 1 :] if liked), 0) if window[place][1] else 0
                for place in range(len(window) - 1)
            ]
            expected.append(([i for i, _ in window[:-1]], following, [i for i, liked in window if not liked]))
    assert sorted(found) == sorted(expected)
    assert batch.contrast.num_tokens == sum(i > 0 for _, following, _ in expected for i in following)


@over_histories_of_both_kinds
def test_signs_and_targets_of_histories_of_both_kinds(
    rows: list[list[tuple[int, bool]]], max_length: int, history: History
) -> None:
    """all: every next item is a target. signed: next likes are the main targets, next dislikes those of the head."""
    encoder, picked = EncoderSettings(history=history, max_length=max_length), np.arange(len(rows))[::-1]
    has_signs = history == "signed"
    batch = train_batch(TrainData(both_kinds(rows), None), picked, encoder, BatchParts(negative=has_signs), CPU)
    sides = [batch.main] if batch.negative is None else [batch.main, batch.negative]
    assert len(sides) == 1 + has_signs and (batch.main.is_disliked_P is not None) == has_signs
    signs = batch.main.is_disliked_P if has_signs else torch.zeros_like(batch.main.inputs_P, dtype=torch.bool)
    assert signs is not None and all(torch.equal(side.inputs_P, batch.main.inputs_P) for side in sides)
    columns = [batch.items_U[batch.main.inputs_P], signs]
    for side in sides:
        columns.append(torch.zeros_like(side.inputs_P))
        columns[-1][side.places_T] = side.targets_T
        assert side.groups == batch.main.groups
    found = [
        list(zip(*values, strict=True))[: np.count_nonzero(values[0])]
        for values in zip(*(by_user(column.tolist(), batch.main.groups) for column in columns), strict=True)
    ]
    expected = []
    for user in picked:
        tokens = []
        for (item, liked), (following, is_liked) in pairwise(rows[user][-(2 * max_length + 1) :]):
            targets = (following * is_liked, following * (not is_liked)) if has_signs else (following,)
            tokens.append((item, has_signs and not liked, *targets))
        expected += [tokens] if tokens else []
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("history", ["positive", "signed"])
def test_with_sampled_items_each_side_has_the_places_of_its_targets(history: History) -> None:
    data = TrainData(ragged([[1, -2, 3, -4, -5, 6], [-7, 8]]), None)
    if history == "positive":
        data = TrainData(ragged([[1, 3, 6], [8]]), ragged([[2, 4, 5], [7, 9]]))
    draw = ItemSampler(SampledSettings(num_items=4), np.ones(10)).draw(1, 1, 0)
    batch = train_batch(data, np.arange(2), EncoderSettings(history=history), BatchParts(negative=True), CPU, draw)
    assert batch.negative is not None and batch.sampled is not None
    for side in (batch.main, batch.negative):
        assert side.target_places_T is not None and len(side.targets_T) > 1
        assert torch.equal(batch.items_U[side.target_places_T], side.targets_T)
    assert torch.equal(batch.items_U[batch.sampled.places_K], batch.sampled.items_K)


def test_a_batch_carries_only_what_the_loss_uses() -> None:
    data = TrainData(ragged([[1, 2]]), ragged([[3, 4]]))
    rows, encoder = np.array([0]), EncoderSettings()
    only_positive = train_batch(data, rows, encoder, BatchParts(), CPU)
    assert only_positive.negative is None and only_positive.contrast is None
    assert only_positive.items_U.tolist() == [0, 1], "targets are read from the softmax alone"
    contrast_only = train_batch(data, rows, encoder, BatchParts(contrast=True), CPU)
    assert contrast_only.negative is None and contrast_only.contrast is not None


def test_users_with_nothing_to_predict_and_empty_shares_make_whole_batches() -> None:
    data = TrainData(ragged([[1], [2]]), ragged([[], []]))
    wanted = BatchParts(negative=True, contrast=True)
    for rows in (np.array([0, 1]), np.array([], dtype=np.int64)):
        batch = train_batch(data, rows, EncoderSettings(), wanted, CPU)
        assert batch.items_U.tolist() == [0]
        assert batch.main.groups == () and len(batch.main.inputs_P) == len(batch.main.targets_T) == 0


IDS = st.integers(-99, 99).filter(bool)


@given(rows=st.lists(st.lists(IDS, max_size=9), min_size=1, max_size=8), max_length=st.integers(1, 12))
def test_history_batch_points_at_the_newest_item(rows: list[list[int]], max_length: int) -> None:
    picked = np.arange(len(rows))[::-1]
    batch = history_batch(ragged(rows), picked, max_length, CPU)
    tokens = batch.items_U[batch.inputs_P] * torch.where(batch.is_disliked_P, -1, 1)
    newest = [rows[u][-1] if rows[u] else 0 for u in picked]
    assert tokens[batch.last_B].tolist() == newest
    windows = [[i for i in row if i] for row in by_user(tokens.tolist(), batch.groups)]
    assert sorted(windows) == sorted(row[-max_length:] for row in rows)


@pytest.mark.parametrize("largest", [3, 1_000, MARKS_PER_ID * 81 - 1, MARKS_PER_ID * 82 + 1, 2**31])
def test_distinct_ids_and_their_places(largest: int) -> None:
    """By marks and by sorting, on both sides of the bound between them."""
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, largest + 1, size) for size in ((10, 4), (40,), (0,))]
    parts[1][0] = largest
    items, places = _distinct(parts)
    assert items.tolist() == sorted({0, *(int(i) for part in parts for i in part.ravel())})
    for part, place in zip(parts, places, strict=True):
        assert place.shape == part.shape and (items[place] == part).all()


@pytest.mark.parametrize("max_groups", [*MAX_GROUPS.values(), 1])
def test_a_device_has_its_number_of_groups(max_groups: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 51, 400)
    order, groups = _grouped(lengths, 50, max_groups)
    assert len(groups) == max_groups and sum(users for users, _ in groups) == len(order) == (lengths > 0).sum()
    start = 0
    for users, length in groups:
        assert lengths[order[start : start + users]].max() == length
        start += users
