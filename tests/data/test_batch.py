import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnfrec_dist.config import EncoderSettings, LossSettings
from pnfrec_dist.data.batch import IGNORE_INDEX, history_batch, train_batch
from pnfrec_dist.data.prepared import Ragged, TrainData

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


def test_train_batch_by_hand() -> None:
    data = TrainData(ragged([[1, 2, 3, 4], [5, 6]]), ragged([[7], [8, 9]]))
    batch = train_batch(data, np.array([0, 1]), EncoderSettings(max_length=2), LossSettings(alpha=1.0, beta=1.0), CPU)
    assert batch.positive.inputs_BL.tolist() == [[2, 3], [5, 6]]
    assert batch.positive.targets_BL.tolist() == [[3, 4], [6, IGNORE_INDEX]]
    assert batch.negative is not None and batch.contrast_BN is not None
    assert batch.negative.inputs_BL.tolist() == [[7], [8]]
    assert batch.negative.targets_BL.tolist() == [[IGNORE_INDEX], [9]]
    assert batch.contrast_BN.tolist() == [[7, 0], [8, 9]]


def test_a_batch_carries_only_what_the_loss_uses() -> None:
    data = TrainData(ragged([[1, 2]]), ragged([[3, 4]]))
    rows, encoder = np.array([0]), EncoderSettings()
    only_positive = train_batch(data, rows, encoder, LossSettings(), CPU)
    assert only_positive.negative is None and only_positive.contrast_BN is None
    contrast_only = train_batch(data, rows, encoder, LossSettings(beta=1.0), CPU)
    assert contrast_only.negative is None and contrast_only.contrast_BN is not None


def test_users_with_nothing_to_predict_and_empty_shares_make_whole_batches() -> None:
    data = TrainData(ragged([[1], [2]]), ragged([[], []]))
    loss = LossSettings(alpha=1.0, beta=1.0)
    for rows in (np.array([0, 1]), np.array([], dtype=np.int64)):
        batch = train_batch(data, rows, EncoderSettings(), loss, CPU)
        assert batch.positive.inputs_BL.shape == (len(rows), 1)
        assert (batch.positive.targets_BL == IGNORE_INDEX).all()


def test_history_batch_points_at_the_newest_item() -> None:
    inputs_BL, last_B = history_batch(ragged([[1, 2, 3], [4], []]), np.array([0, 1, 2]), 2, CPU)
    assert inputs_BL.tolist() == [[2, 3], [4, 0], [0, 0]]
    assert last_B.tolist() == [1, 0, 0]
