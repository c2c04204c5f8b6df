"""The training step."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import TrainBatch
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import term_counts, term_weights, weighted_loss
from pnfrec_dist.model.dual_encoder import PNFRec

NORM_BLOCK = 1 << 16


@dataclass(frozen=True)
class Requests:
    """What a rank asks of all ranks; all hear it in the same step."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class StepSums:
    """What all ranks agree on after a step."""

    totals: Tensor
    """[3] of TERMS, float64"""
    counts: Tensor
    """[3] of TERMS"""
    is_finite: bool
    """whether every loss and gradient was; if not, the step changed nothing"""
    requests: Requests
    """what any rank asked for"""


def train_step(
    model: PNFRec,
    encoders: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[TrainBatch],
    settings: Settings,
    world: World,
    requests: Requests,
) -> StepSums:
    """One optimizer step on one global batch, of which `batches` are this rank's share, in parts (some may be empty).

    The loss is sum over terms of weight * total / count, with totals and counts over all ranks and parts; gradients are
    summed over ranks. encoders is World.wrap(model.encoders). Every rank brings the same number of parts.
    """
    counts = torch.stack([term_counts(batch) for batch in batches]).sum(0)
    asked = torch.tensor([int(requests.stop), int(requests.save)])
    shared = world.sum(torch.cat([counts, asked]).to(world.device))
    counts = shared[:3]
    weights = term_weights(settings.loss).to(world.device) / counts.clamp(min=1)

    optimizer.zero_grad(set_to_none=True)
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)
    for number, batch in enumerate(batches):
        with world.gradients_stay_here(encoders) if number < len(batches) - 1 else contextlib.nullcontext():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=settings.train.precision == "bfloat16"):
                vectors_UD = model.item_table.lookup(batch.items_U)
                hidden = encoders(vectors_UD, batch)
                loss, part = weighted_loss(hidden, vectors_UD, batch, model.item_table, weights, settings)
            loss.backward()
            model.item_table.collect_gradients()
        totals += part
    table_gradient = model.item_table.weight.grad
    assert table_gradient is not None
    if not model.item_table.is_sharded:
        world.sum(table_gradient)
    totals = world.sum(torch.cat([totals, _not_finite(model)[None]]))
    is_finite = bool(totals.isfinite().all()) and totals[3] == 0
    if is_finite:
        if settings.optimizer.max_gradient_norm:
            scale_gradients(model, settings.optimizer.max_gradient_norm)
        optimizer.step()
    stop, save = (shared[3:] > 0).tolist()
    return StepSums(totals[:3], counts, bool(is_finite), Requests(stop, save))


@torch.no_grad()
def _not_finite(model: PNFRec) -> Tensor:
    """How many parameters' gradients hold a nan or infinity, as their sums show, float64."""
    sums = torch.stack([p.grad.sum().float() for p in model.parameters() if p.grad is not None])
    return (~sums.isfinite()).sum().double()


@torch.no_grad()
def scale_gradients(model: PNFRec, max_norm: float) -> None:
    """Scales all gradients down so that their norm over all parameters, on whatever rank, is at most max_norm."""
    of_table = model.item_table.shards.sum(_square_sum([model.item_table.weight]))
    norm = (of_table + _square_sum(model.encoders.parameters())).sqrt()
    scale = (max_norm / norm).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad.dtype))


def _square_sum(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sums over blocks, added in float64. A norm in float64 would copy the whole item table's gradient first."""
    blocks = [b for p in parameters if p.grad is not None for b in p.grad.flatten().split(NORM_BLOCK)]
    return torch.stack([torch.dot(block, block) for block in blocks]).double().sum()
