"""The training step.

J terms of the loss, U distinct items of a batch, D width.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pnfrec_dist.data.batches import TrainBatch
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import encoded
from pnfrec_dist.model.dual_encoder import PNFRec

NORM_BLOCK = 1 << 16


@dataclass(frozen=True)
class Requests:
    """Requests of one rank to all ranks; all get them in the same step."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class StepSums:
    """Results of a step, the same on all ranks."""

    totals: dict[str, float]
    """term of the loss -> sum over its tokens"""
    counts: dict[str, float]
    """term -> number of its tokens"""
    is_finite: bool
    """whether every loss and gradient was finite; if not, the step changed nothing"""
    requests: Requests
    """requests of any rank"""


def train_step(
    model: PNFRec,
    encoders: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[TrainBatch],
    objective: Objective,
    world: World,
    requests: Requests,
) -> StepSums:
    """One optimizer step on one global batch. `batches` is this rank's share of it, in parts (some may be empty).

    The loss is sum over terms of weight * total / count, with totals and counts over all ranks and parts. Gradients are
    summed over ranks. encoders is World.wrap(model.encoders). Every rank has the same number of parts.
    """
    num_terms = len(objective.terms)
    counts_J = torch.stack([objective.counts(batch) for batch in batches]).sum(0)
    asked = torch.tensor([int(requests.stop), int(requests.save)])
    shared = world.sum(torch.cat([counts_J, asked]).to(world.device))
    sums = compute_gradients(model, encoders, optimizer, batches, objective, world, shared[:num_terms])
    read_sums = reading(sums)
    step_if_finite(optimizer, sums)
    *totals, not_finite = read_sums()  # a GPU has the optimizer's step to do meanwhile
    *counts, stop, save = shared.tolist()
    return step_sums(objective, totals, counts, not_finite, Requests(stop > 0, save > 0))


def step_sums(
    objective: Objective, totals: list[float], counts: list[float], not_finite: float, requests: Requests
) -> StepSums:
    """totals, counts: of the terms, in their order; not_finite: number of gradients that are not finite."""
    is_finite = all(map(math.isfinite, totals)) and not_finite == 0
    of_terms = [dict(zip(objective.terms, values, strict=True)) for values in (totals, counts)]
    return StepSums(of_terms[0], of_terms[1], is_finite, requests)


def compute_gradients(
    model: PNFRec,
    encoders: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[TrainBatch],
    objective: Objective,
    world: World,
    counts_J: Tensor,
) -> Tensor:
    """Sets all gradients of a step. Returns the totals of the terms and the number of gradients that are not finite,
    [J + 1], over all ranks. counts_J: tokens of each term, over all ranks."""
    settings = objective.settings
    weights_J = objective.weights_on(world.device) / counts_J.clamp(min=1)
    optimizer.zero_grad(set_to_none=True)
    totals_J = torch.zeros(len(objective.terms), dtype=torch.float64, device=world.device)
    for number, batch in enumerate(batches):
        with world.gradients_stay_here(encoders) if number < len(batches) - 1 else contextlib.nullcontext():
            with torch.autocast(world.device.type, torch.bfloat16, enabled=settings.train.precision == "bfloat16"):
                vectors_UD = model.item_table.lookup(None if batch.has_all_items else batch.items_U)
                tensors = encoded(encoders, vectors_UD, batch)
                loss, part_J = objective.loss(tensors, model.item_table, weights_J)
            loss.backward()
            model.item_table.collect_gradients()
        totals_J += part_J
    table_gradient = model.item_table.weight.grad
    assert table_gradient is not None
    if not model.item_table.is_sharded:
        world.sum(table_gradient)
    sums = world.sum(torch.cat([totals_J, _not_finite(model)[None]]))
    if settings.optimizer.max_gradient_norm:
        scale_gradients(model, settings.optimizer.max_gradient_norm)
    return sums


def step_if_finite(optimizer: Optimizer, sums: Tensor) -> None:
    """The optimizer's step, unless a sum is not finite or the last one, of gradients that are not, is above 0.

    Fused Adam reads this on the device, as it does for gradient scaling: a host that decided would let a GPU wait.
    """
    is_bad = ~sums[:-1].isfinite().all() | (sums[-1] > 0)
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = is_bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    elif not is_bad:
        optimizer.step()


def reading(values: Tensor) -> Callable[[], list[float]]:
    """Starts to copy values to the host; the function that it returns waits for them, not for what is queued later."""
    if not values.is_cuda:
        return values.tolist
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    is_here = torch.cuda.Event()
    is_here.record()

    def wait() -> list[float]:
        is_here.synchronize()
        return here.tolist()

    return wait


@torch.no_grad()
def _not_finite(model: PNFRec) -> Tensor:
    """Number of parameters whose gradient has a nan or infinity, as float64; on a GPU, 1 if there is any."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if gradients[0].is_cuda:  # two kernels instead of one for each parameter
        return (~torch.nn.utils.get_total_norm(gradients, math.inf).isfinite()).double()
    sums = torch.stack([gradient.sum().float() for gradient in gradients])
    return (~sums.isfinite()).sum().double()


@torch.no_grad()
def scale_gradients(model: PNFRec, max_norm: float) -> None:
    """Scales all gradients down so that their norm, over all parameters of all ranks, is at most max_norm."""
    of_table = model.item_table.shards.sum(_square_sum([model.item_table.weight]))
    norm = (of_table + _square_sum(model.encoders.parameters())).sqrt()
    scale = (max_norm / norm).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale.to(parameter.grad.dtype))


def _square_sum(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of squares, as float64. On a CPU, it is summed in blocks: a float64 norm would copy the gradient of the
    item table, and a float32 one is not exact enough. A GPU sums in a tree."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and gradients[0].is_cuda:
        return torch.nn.utils.get_total_norm(gradients).double().square()
    blocks = [block for gradient in gradients for block in gradient.flatten().split(NORM_BLOCK)]
    return torch.stack([torch.dot(block, block) for block in blocks]).double().sum()
