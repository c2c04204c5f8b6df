"""Each detail of the authors' code in benchmarks/authors.py changes what it says, and nothing else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import authors
from benchmarks.authors import DETAILS, equal_layers, padding_class, shared_parts, without_last_dislike
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.losses import contrastive
from pnfrec_dist.losses.catalog_loss import Targets
from pnfrec_dist.losses.exact import Exact
from pnfrec_dist.losses.terms import encoded, needed_parts
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.training.initial_model import build_model

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=8, num_blocks=2, max_length=4, dropout=0.0), loss=LossSettings(0.45, 0.25)
)
ITEMS = 9


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    patch.stopall()


def built() -> PNFRec:
    return build_model(ITEMS, SETTINGS)


def test_every_detail_is_there_alone_and_together() -> None:
    alone = [change for name, (_, changes) in DETAILS.items() if name != "all five" for change in changes]
    assert DETAILS["all five"] == ("pnfrec_dot", tuple(alone)) and len(alone) == 4


def test_positions_and_norm_are_one_for_both_encoders() -> None:
    model, plain = built(), built()
    shared_parts(model, SETTINGS)
    missing = {"negative.positions.weight", "negative.norm.weight", "negative.norm.bias"}
    names = {name for name, _ in plain.encoders.named_parameters()}
    stored = {name: parameter.detach().clone() for name, parameter in model.encoders.named_parameters()}
    assert stored.keys() == names - missing
    other = build_model(ITEMS, replace(SETTINGS, seed=7))
    shared_parts(other, SETTINGS)
    other.encoders.load_state_dict(stored)
    assert all(torch.equal(parameter, stored[name]) for name, parameter in other.encoders.named_parameters())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.encoders.load_state_dict({name: stored[name] for name in stored if "blocks" not in name})


def test_the_padding_row_is_a_class() -> None:
    model = built()
    padding_class(model, SETTINGS)
    table, hidden_TD = model.item_table, torch.randn(5, 8, requires_grad=True)
    assert table.weight[0].abs().min() > 0
    targets_T, weights_T = torch.tensor([1, 3, 9, 2, 2]), torch.full((5,), 0.2)
    loss, _ = Exact()(Targets(hidden_TD, targets_T, weights_T), table, SETTINGS)
    loss.backward()
    table.collect_gradients()
    found = table.weight.grad
    weight = table.weight.detach().clone().requires_grad_()
    expected = F.cross_entropy(hidden_TD.detach() @ weight.T, targets_T)
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    torch.testing.assert_close(found, weight.grad)


def test_the_contrast_lacks_each_users_last_dislike() -> None:
    """As if the users' lists of negatives had ended one item earlier; the negative encoder reads them all."""
    model = built()
    positives = [[1, 2, 3], [4, 5], [6, 7, 8]]
    tensors = []
    for negatives in ([[4, 5], [], [9, 1, 2]], [[4], [], [9, 1]]):
        data = TrainData(Ragged.of(positives, np.int32), Ragged.of(negatives, np.int32))
        batch = train_batch(data, np.arange(3), SETTINGS.encoder, needed_parts(SETTINGS.loss), torch.device("cpu"))
        tensors.append(encoded(model.encoders, model.item_table.lookup(batch.items_U), batch))
    whole, expected = (contrastive.CONTRASTIVE.total(one, SETTINGS) for one in tensors)
    without_last_dislike(model, SETTINGS)
    found = contrastive.CONTRASTIVE.total(tensors[0], SETTINGS)
    assert whole != expected
    torch.testing.assert_close(found, expected)


def test_layers_of_one_shape_start_equal() -> None:
    model, plain = built(), built()
    equal_layers(model, SETTINGS)
    main, negative = model.encoders.main, model.encoders.negative
    assert negative is not None
    for (name, one), other in zip(main.named_parameters(), negative.parameters(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(main.blocks[0].parameters(), main.blocks[1].parameters(), strict=True):
        assert torch.equal(one, other)
    name = "blocks.0.feed_forward.0.weight"
    first, second = (parts.main.get_parameter(name) for parts in (model.encoders, plain.encoders))
    assert not torch.equal(first, second) and float(first.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_trainings_are_compared_and_a_second_command_trains_only_what_is_new(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All five details at once, trained, validated and tested in a process of their own."""
    flags = ["--data", str(prepared), "--work", str(tmp_path / "work"), "--hidden-size", "8", "--seeds", "1"]
    flags += ["--only", "pnfrec", "all five", "--at-a-time", "2"]

    def shown(*more: str) -> str:
        line = [*flags, *more]
        monkeypatch.setattr("sys.argv", ["authors", *line])
        assert authors.main(line) == 0
        return capfd.readouterr().out

    first, again, longer = shown("--epochs", "1"), shown("--epochs", "1"), shown("--epochs", "2", "--only", "all five")
    assert first.count(", epoch 1:") == 2 and "epoch" not in again.partition("##")[0]
    assert longer.count(", epoch 2:") == 1
    tables = first[first.index("## Many points") :]
    assert again == tables and "### Difference from `pnfrec`, on both" in tables and "| `all five` | 1 |" in tables
