"""The batches of an epoch have every user once, for any ranks and parts, and can start at any step."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, SampledSettings, Settings, TrainSettings
from pnfrec_dist.data.batches import BatchParts, TrainBatch
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.item_sampler import ItemSampler
from pnfrec_dist.data.loader import Loader, tensors_of
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World

USERS = 23
SETTINGS = Settings(encoder=EncoderSettings(max_length=3), train=TrainSettings(batch_size=5))


def data() -> TrainData:
    """User u likes the items 2u + 1 and 2u + 2, so a target identifies its user."""
    offsets, ids = np.arange(USERS + 1) * 2, np.arange(1, 2 * USERS + 1, dtype=np.int32)
    return TrainData(Ragged(offsets, ids), Ragged(offsets, ids))


def collated(batches: list[TrainBatch] | Tensor) -> list[TrainBatch]:
    """Without a plan of slots, all batches are made on the host."""
    assert not isinstance(batches, Tensor)
    return batches


def users_of(settings: Settings, world: World, epoch: int = 1, first_step: int = 0) -> list[list[int]]:
    """This rank's users of each step."""
    return [
        sorted((int(t) - 2) // 2 for batch in collated(batches) for t in batch.main.targets_T)
        for _, batches in Loader(data(), settings, BatchParts(), None, world).epoch(epoch, first_step)
    ]


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_and_parts_share_the_users_of_each_step(ranks: int, parts: int) -> None:
    settings = replace(SETTINGS, train=TrainSettings(batch_size=5, accumulation=parts))
    alone = users_of(SETTINGS, World())
    together = [users_of(settings, World(rank, ranks)) for rank in range(ranks)]
    assert [sorted(chain(*step)) for step in zip(*together, strict=True)] == alone
    assert sorted(chain(*alone)) == list(range(USERS))
    sizes = [users for users, _ in Loader(data(), settings, BatchParts(), None, World(0, ranks)).epoch(1, 0)]
    assert sizes == [5, 5, 5, 5, 3]


def test_an_epoch_goes_on_from_any_step() -> None:
    whole = users_of(SETTINGS, World(), epoch=2)
    for step in range(6):
        assert users_of(SETTINGS, World(), epoch=2, first_step=step) == whole[step:]


def test_all_parts_of_all_ranks_share_a_steps_sample() -> None:
    settings = replace(SETTINGS, loss=LossSettings(cross_entropy="gbce"), sampled=SampledSettings(num_items=6))
    sampler = ItemSampler(settings.sampled, np.ones(2 * USERS + 1))
    steps = {}
    for rank in range(2):
        loader = Loader(data(), settings, BatchParts(), sampler, World(rank, 2))
        for step, (_, batches) in enumerate(loader.epoch(1, 0)):
            for batch in collated(batches):
                assert batch.sampled is not None
                items = tuple(batch.items_U[batch.sampled.places_K].tolist())
                assert items == tuple(batch.sampled.items_K.tolist())
                steps.setdefault(step, set()).add(items)
    assert all(len(items) == 1 for items in steps.values())
    assert len(set.union(*steps.values())) == 5


def test_an_error_in_the_thread_is_raised_in_the_loop() -> None:
    broken = TrainData(data().history, Ragged(np.array([0]), np.array([1])))
    with pytest.raises(IndexError):
        next(Loader(broken, SETTINGS, BatchParts(negative=True), None, World()).epoch(1, 0))


def test_all_tensors_of_a_batch_are_found() -> None:
    """Those whose memory a GPU must not give away."""
    batch = train_batch(data(), np.arange(5), EncoderSettings(), BatchParts(True, True), torch.device("cpu"))
    found = {id(tensor) for tensor in tensors_of([batch])}
    assert batch.negative is not None and batch.contrast is not None
    for tensor in (batch.items_U, batch.main.inputs_P, batch.negative.targets_T, batch.contrast.negatives_BN):
        assert id(tensor) in found
