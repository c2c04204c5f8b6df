"""A step on fixed shapes has the losses and gradients of a step on collate.py's batch; on a GPU it is recorded."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.ranks import NEEDS_GPU
from torch import Tensor

from pnfrec_dist.config.settings import (
    EncoderSettings,
    History,
    LossSettings,
    OptimizerSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.batches import BatchParts
from pnfrec_dist.data.collate import train_batch
from pnfrec_dist.data.device_batches import DeviceBatches
from pnfrec_dist.data.loader import MISFIT_PARTS, Loader
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.slots import plan_slots
from pnfrec_dist.distributed import World, seed_step
from pnfrec_dist.losses.contrastive import ContrastiveTerm
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import Term
from pnfrec_dist.model.block import Block
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.sasrec_block import SASRecBlock
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.step import Requests, StepSums, train_step
from pnfrec_dist.training.step_graph import StepGraph, can_record, make_optimizer

SETTINGS = Settings(
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=6, dropout=0.0),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=12),
    optimizer=OptimizerSettings(max_gradient_norm=0.5),
)
USERS, ITEMS = 40, 50


def train_data(history: History, items: int = ITEMS) -> TrainData:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, items + 1, length) for length in rng.integers(1, 15, USERS)]
    if history == "positive":
        return TrainData(Ragged.of(rows), Ragged.of([row[::-1] for row in rows[::-1]]))
    return TrainData(Ragged.of([row * rng.choice([-1, 1], len(row)) for row in rows]), None)


def settings_for(history: History) -> Settings:
    terms = ("ce_likes=0.7",) if history == "both" else ()
    loss = LossSettings(0.45 if history != "all" else 0.0, 0.25, terms)
    return replace(SETTINGS, encoder=replace(SETTINGS.encoder, history=history), loss=loss)


def graph_of(model: PNFRec, settings: Settings, data: TrainData, world: World, items: int = ITEMS) -> StepGraph:
    objective = Objective(settings)
    plan = plan_slots(data, settings.encoder, objective.parts, settings.train.batch_size)
    batches = DeviceBatches.of(data, plan, settings.encoder, objective.parts, items, world.device)
    return StepGraph(model, make_optimizer(model, settings, world), objective, world, batches)


@pytest.mark.parametrize("items", [ITEMS, 5_000])
@pytest.mark.parametrize("history", ["positive", "all", "signed", "both"])
def test_losses_and_gradients_are_those_of_a_collated_batch(history: History, items: int) -> None:
    settings, data, rows = settings_for(history), train_data(history, items), np.arange(5, 16)
    models = [build_model(items, settings).double() for _ in range(2)]
    objective = Objective(settings)
    batch = train_batch(data, rows, settings.encoder, objective.parts, torch.device("cpu"))
    optimizer = torch.optim.Adam(models[0].parameters(), fused=True)
    expected = train_step(models[0], models[0].encoders, optimizer, [batch], objective, World(), Requests())
    graph = graph_of(models[1], settings, data, World(), items)
    placed = graph.batches.plan.place(rows)
    assert placed is not None
    found = graph.step(torch.from_numpy(placed), Requests(save=True))
    assert found.counts == expected.counts and found.is_finite and found.requests == Requests(save=True)
    assert found.totals == pytest.approx(expected.totals, rel=1e-12)
    for (name, ours), theirs in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model = build_model(ITEMS, SETTINGS)
    graph = graph_of(model, SETTINGS, train_data("positive"), World())
    placed = graph.batches.plan.place(np.arange(12))
    assert placed is not None
    assert graph.step(torch.from_numpy(placed), Requests()).is_finite
    with torch.no_grad():
        model.encoders.main.positions.weight[0, 0] = torch.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not graph.step(torch.from_numpy(placed), Requests()).is_finite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_loader_gives_slots_and_batches_that_do_not_fit_them() -> None:
    """The last batch has one user, who has a slot, too."""
    data = TrainData(Ragged.of([[1, 2, 3]] * 20 + [[1] * 9] * 5), None)
    settings = replace(SETTINGS, loss=LossSettings(), train=TrainSettings(batch_size=4))
    plan = plan_slots(data, settings.encoder, BatchParts(), 4)
    small = replace(plan, room=(12,))  # batches with more than one long list do not fit
    loader = Loader(data, settings, BatchParts(), None, World(), small)
    made = [batches for _, batches in loader.epoch(1, 0)]
    assert len(made) == 7 and {type(batches) for batches in made} == {Tensor, list}
    users = [int((batches >= 0).sum()) for batches in made if isinstance(batches, Tensor)]
    assert set(users) <= {4, 1}
    assert {len(batches) for batches in made if isinstance(batches, list)} == {MISFIT_PARTS}


class OwnBlock(SASRecBlock):
    """Says nothing of graphs; a subclass of the built-in block would inherit that it is recordable."""

    is_recordable = False


class OwnTerm(ContrastiveTerm):
    is_recordable = False

    def name(self, encoder: EncoderSettings) -> str:
        return "own"


OWN_TERM = OwnTerm()


@pytest.mark.parametrize(
    "change",
    [
        {"loss": LossSettings(0.45, 0.25, cross_entropy="sampled_softmax")},
        {"loss": LossSettings(0.45, 0.25, terms=(f"{__name__}:OWN_TERM=1",))},
        {"encoder": replace(SETTINGS.encoder, block=f"{__name__}:OwnBlock")},
        {"train": TrainSettings(batch_size=12, accumulation=2)},
        {"train": TrainSettings(batch_size=12, cuda_graph=False)},
    ],
)
def test_steps_with_own_code_or_sampled_items_are_not_recorded(change: dict[str, object]) -> None:
    gpu = World(device=torch.device("cuda"))
    assert can_record(SETTINGS, gpu)
    assert not can_record(SETTINGS, World()) and not can_record(SETTINGS, World(0, 2, torch.device("cuda")))
    assert not can_record(replace(SETTINGS, **change), gpu)  # type: ignore[arg-type]
    assert not Block.is_recordable and not Term.is_recordable, "own code must say that it is"


def steps(graph: StepGraph, data: TrainData, first: int, end: int) -> Iterator[StepSums]:
    settings, parts = graph.objective.settings, graph.objective.parts
    loader = Loader(data, settings, parts, None, graph.world, graph.batches.plan)
    for number, (_, rows_SB) in enumerate(loader.epoch(1, first), first):
        if number == end:
            return
        seed_step(1, 1, number, 0)
        assert isinstance(rows_SB, Tensor)
        yield graph.step(rows_SB, Requests())


@NEEDS_GPU
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("history", ["positive", "signed", "both"])
def test_on_a_gpu_a_resumed_run_is_bitwise_equal(history: History, precision: str) -> None:
    """Steps 3 and 4 of another process, the first of which is not recorded, are those of one process; dropout is on."""
    settings = settings_for(history)
    settings = replace(
        settings,
        encoder=replace(settings.encoder, hidden_size=32, dropout=0.1),
        train=TrainSettings(batch_size=8, precision=precision),  # type: ignore[arg-type]
    )
    data, world = train_data(history), World(device=torch.device("cuda"))
    whole, first, second = (graph_of(build_model(ITEMS, settings).cuda(), settings, data, world) for _ in range(3))
    expected = [sums.totals for sums in steps(whole, data, 0, 4)]
    found = [sums.totals for sums in steps(first, data, 0, 2)]
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    found += [sums.totals for sums in steps(second, data, 2, 4)]
    assert found == expected
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
