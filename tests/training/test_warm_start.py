"""A run that begins with a trained model's weights: items are matched by raw id, whatever their ids and their order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import spawn
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.artifact import of_checkpoint, write_exported
from pnfrec_dist.inference.warm_start_source import open_source
from pnfrec_dist.training import warm_start
from pnfrec_dist.training.checkpoint import load_model, load_optimizer
from pnfrec_dist.training.checkpoint_manager import checkpoint_path, newest_usable
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.step_graph import make_optimizer
from pnfrec_dist.training.warm_start import Source, catalogs, require_same_model, write_start

OLD_ITEMS, NEW_ITEMS = 12, 15
SHUFFLED = ["n1", "7", "3", "n2", "12", "1", "9", "n3", "5", "2", "n4", "11", "8", "n5", "4"]
"""Raw ids of the new data: 6 and 10 are gone, n1 to n5 are new."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Source:
    """A training on items 1 to 12."""
    directory = tmp_path_factory.mktemp("old")
    data = open_prepared(Location(prepared_writer(directory / "tiny", items=OLD_ITEMS)))
    checkpoint = trained(data, SETTINGS, directory / "run")
    return open_source(str(checkpoint), replace(SETTINGS, data_dir=str(directory)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> PreparedData:
    directory = tmp_path_factory.mktemp("new") / "tiny"
    return open_prepared(Location(prepared_writer(directory, items=NEW_ITEMS, seed=3, raw_ids=SHUFFLED)))


def loop_of(settings: Settings, data: PreparedData, run_dir: Path) -> TrainLoop:
    return TrainLoop(settings, data, run_dir, World(), Hooks(lambda _: None, lambda: False))


@pytest.mark.parametrize("rows", [4, 1 << 20])
def test_known_items_keep_vectors_and_optimizer_state(
    source: Source, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(warm_start, "ROWS", rows)
    write_start(tmp_path, source, SETTINGS, data)
    loop = loop_of(SETTINGS, data, tmp_path)
    table = loop.model.item_table.weight
    state = loop.optimizer.state[table]
    for item, raw_id in enumerate(SHUFFLED, start=1):
        old = np.array([int(raw_id)]) if raw_id.isdigit() else None
        for name, tensor in (("weight", table), ("exp_avg", state["exp_avg"]), ("exp_avg_sq", state["exp_avg_sq"])):
            if old is not None:
                assert torch.equal(tensor[item], source.rows(name, old)[0])
                assert tensor[item].any()
            elif name != "weight":
                assert not tensor[item].any()
    assert not table[0].any()
    for name, parameter in loop.model.encoders.named_parameters():
        assert torch.equal(parameter, source.encoders[name])
        stored = source.optimizer[f"exp_avg.encoders.{name}"]
        assert torch.equal(loop.optimizer.state[parameter]["exp_avg"], stored)
    assert (loop.state.epoch, loop.state.step, loop.state.total_steps) == (1, 0, 0)


def test_a_new_item_starts_at_the_mean_of_its_users(source: Source, data: PreparedData, tmp_path: Path) -> None:
    """Against loops in float64."""
    write_start(tmp_path, source, SETTINGS, data)
    table = loop_of(SETTINGS, data, tmp_path).model.item_table.weight.detach().double().numpy()
    train, compared = data.train("positive"), 0
    assert train.negative is not None
    for item, raw_id in enumerate(SHUFFLED, start=1):
        means = []
        for user in range(len(train)):
            items = {*train.history.row(user).tolist(), *train.negative.row(user).tolist()}
            known = [int(SHUFFLED[other - 1]) for other in items if SHUFFLED[other - 1].isdigit()]
            if item in items and known:
                means.append(source.rows("weight", np.array(known)).double().mean(0).numpy())
        if not raw_id.isdigit():
            assert table[item] == pytest.approx(np.mean(means, axis=0), abs=1e-6)
            compared += 1
    assert compared == 5


def test_an_item_whose_users_know_no_other_starts_like_that_of_a_new_model(
    source: Source, tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    names = [*(f"n{item}" for item in range(1, 3000)), "7"]
    data = open_prepared(Location(prepared_writer(tmp_path / "tiny", items=3000, raw_ids=names)))
    found = catalogs(source, data)
    vectors = warm_start.new_vectors(source, found, SETTINGS, data.train("positive"))
    assert vectors.shape == (2999, 8) and vectors.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_counts_of_items(source: Source, data: PreparedData) -> None:
    assert str(catalogs(source, data)) == "10 items keep their vectors, 5 are new, 2 are gone"


def test_data_of_other_items_are_refused(source: Source, tmp_path: Path, prepared_writer: Callable[..., Path]) -> None:
    names = [f"other{item}" for item in range(OLD_ITEMS)]
    data = open_prepared(Location(prepared_writer(tmp_path / "tiny", items=OLD_ITEMS, raw_ids=names)))
    with pytest.raises(InputError, match=r"has no item of that model, which knows items such as 1; .* such as other0"):
        catalogs(source, data)


ENCODER = SETTINGS.encoder
WIDER, DEEPER = replace(ENCODER, hidden_size=16), replace(ENCODER, num_blocks=2, max_length=5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (replace(SETTINGS, encoder=WIDER), "hidden_size 8, not 16; .* give --encoder.hidden_size 8$"),
        (replace(SETTINGS, encoder=DEEPER), "--encoder.num_blocks 1 --encoder.max_length 3$"),
        (
            replace(SETTINGS, loss=LossSettings(), model="sasrec_p"),
            "has an encoder for dislikes, and sasrec_p does not",
        ),
        (replace(SETTINGS, encoder=EncoderSettings(8, 1, history="all", max_length=3), loss=LossSettings()), "history"),
    ],
)
def test_another_model_is_refused_with_the_flags_that_keep_the_weights(
    source: Source, settings: Settings, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        require_same_model(source, settings)


def test_dropout_and_weights_of_the_loss_may_differ(source: Source) -> None:
    changed = replace(SETTINGS, encoder=replace(ENCODER, dropout=0.4), loss=LossSettings(0.1, 0.9), seed=7)
    require_same_model(source, changed)


def test_an_exported_model_gives_weights_alone(source: Source, data: PreparedData, tmp_path: Path) -> None:
    old = open_prepared(Location(Path(source.reference).parents[2] / "tiny"))
    write_exported(tmp_path / "model" / "artifacts" / "exported", of_checkpoint(Path(source.reference), SETTINGS, old))
    (tmp_path / "model" / "MLmodel").touch()
    exported = open_source(str(tmp_path / "model"), SETTINGS)
    assert not exported.optimizer
    write_start(tmp_path / "run", exported, SETTINGS, data)
    loop = loop_of(SETTINGS, data, tmp_path / "run")
    assert not loop.optimizer.state
    seven = SHUFFLED.index("7") + 1
    assert torch.equal(loop.model.item_table.weight[seven], source.rows("weight", np.array([7]))[0])
    loop.run()


def test_a_run_goes_on_from_its_own_checkpoints(source: Source, data: PreparedData, tmp_path: Path) -> None:
    """The beginning is read once; afterwards, the run resumes as every other run."""
    write_start(tmp_path, source, SETTINGS, data)
    loop_of(SETTINGS, data, tmp_path).run()
    path, _ = newest_usable(tmp_path)
    assert path is not None and path != checkpoint_path(tmp_path, 0)
    assert loop_of(SETTINGS, data, tmp_path).state.epoch == 2


def test_a_write_that_was_killed_leaves_no_checkpoint(
    source: Source, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_start, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        write_start(tmp_path, source, SETTINGS, data)
    assert newest_usable(tmp_path) == (None, [])
    monkeypatch.undo()
    write_start(tmp_path, source, SETTINGS, data)
    assert newest_usable(tmp_path) == (checkpoint_path(tmp_path, 0), [])


def _its_rows(world: World, run_dir: Path, whole: dict[str, torch.Tensor]) -> None:
    model = build_model(NEW_ITEMS, SETTINGS, world)
    optimizer = make_optimizer(model, SETTINGS, world)
    load_model(checkpoint_path(run_dir, 0), model)
    load_optimizer(checkpoint_path(run_dir, 0), model, optimizer)
    table = model.item_table
    assert table.is_sharded
    assert torch.equal(table.weight, whole["weight"][table.first_row : table.end_row])
    assert torch.equal(optimizer.state[table.weight]["exp_avg"], whole["exp_avg"][table.first_row : table.end_row])


def test_ranks_that_share_the_table_read_their_rows(source: Source, data: PreparedData, tmp_path: Path) -> None:
    write_start(tmp_path, source, SETTINGS, data)
    loop = loop_of(SETTINGS, data, tmp_path)
    table = loop.model.item_table.weight
    whole = {"weight": table.detach(), "exp_avg": loop.optimizer.state[table]["exp_avg"]}
    spawn(3, _its_rows, tmp_path, whole)
