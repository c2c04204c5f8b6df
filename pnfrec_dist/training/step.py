"""The training step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pnfrec_dist.config import Settings
from pnfrec_dist.data.batch import TrainBatch
from pnfrec_dist.distributed import World
from pnfrec_dist.losses.objective import loss_totals, term_weights
from pnfrec_dist.model.dual_encoder import DualEncoder


@dataclass(frozen=True)
class StepSums:
    """Sums over this rank's users, and what all ranks agreed on."""

    totals: Tensor
    """[3] of TERMS, this rank"""
    counts: Tensor
    """[3] of TERMS, all ranks"""
    stop: bool
    """whether any rank was asked to stop"""


def train_step(
    wrapped: nn.Module,
    model: DualEncoder,
    optimizer: Optimizer,
    batch: TrainBatch,
    settings: Settings,
    world: World,
    stop: bool,
) -> StepSums:
    """One optimizer step on one global batch, of which `batch` is this rank's share (it may be empty).

    The loss is sum over terms of weight * total / count with totals and counts over all ranks. `wrapped` averages
    gradients over ranks, hence the factor world.size. wrapped is `model`, or DistributedDataParallel around it.
    """
    negative_inputs_BL = batch.negative.inputs_BL if batch.negative is not None else None
    positive_BLD, negative_BLD = wrapped(batch.positive.inputs_BL, negative_inputs_BL)
    totals, counts = loss_totals(positive_BLD, negative_BLD, batch, model.item_table, settings.contrastive)
    shared = world.sum(torch.cat([counts, counts.new_tensor([float(stop)])]))
    counts = shared[:3]
    weights = term_weights(settings.loss).to(totals)
    loss = (weights * totals / counts.clamp(min=1)).sum() * world.size

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return StepSums(totals.detach(), counts, bool(shared[3] > 0))
