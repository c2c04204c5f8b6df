"""Decides before workers start whether the item table is sharded, and estimates the memory of a step."""

from dataclasses import dataclass

import numpy as np
import torch

from pnfrec_dist.config.settings import EncoderSettings, Settings
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.slots import SlotPlan, plan_slots
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.catalog_loss import FLOAT, NARROW, StepExtent
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.model.block import BlockSize
from pnfrec_dist.model.encoder import block_size
from pnfrec_dist.training.step_graph import may_record

LIBRARIES = (600 if torch.version.cuda is None else 900) * 2**20
"""Bytes of Python, torch, and Ray or MLflow in one worker. A torch that supports GPUs is larger."""
GPU_WORKSPACES = 190 * 2**20
"""Bytes of cuBLAS and of small tensors of a step that is recorded as a CUDA graph."""
TOKEN_COPIES, LOOKED_UP_COPIES = 2.3, 3.1
"""float32 vectors of each token, and of each item that a step looks up, which exist at the same time on a GPU. These
three were fitted to measured steps (docs/benchmarks.md)."""


@dataclass(frozen=True)
class StepPlan:
    """Whether the item table is sharded, and the estimated bytes of one worker by purpose."""

    is_sharded: bool
    table: int
    """this worker's rows of the item table"""
    table_training: int
    """their gradient and Adam's two moments"""
    encoders: int
    """weights, gradients and moments"""
    activations: int
    """intermediate results of the encoders for the backward pass, and the inputs of the softmax"""
    passing: int
    """temporary further gradient of this worker's rows"""
    logits: int
    """most at a time: a tile of the exact softmax, or the drawn items and scores of a loss over some items"""
    data: int
    """the training users' lists"""
    checkpoint: int
    """the copy that is written while training goes on; 0 for GPU workers, whose copy is not in GPU memory"""

    @property
    def total(self) -> int:
        table = self.table + self.table_training + self.passing
        rest = self.activations + self.logits + self.data + self.checkpoint
        return table + self.encoders + rest + LIBRARIES


def plan_step(
    settings: Settings, data: TrainData, num_items: int, num_workers: int, *, on_gpu: bool = False
) -> StepPlan:
    """The plan for the largest step: that of the users with the longest histories.

    item_table auto: per step, a replicated table sends the gradients of N rows; a sharded table sends the hidden states
    of all ranks' targets and the rows that this rank looks up. So it is sharded if N > R * T + U (R ranks, T targets
    and U looked-up items of a rank). T counts all next items, also of a signed history, where fewer may be targets.
    """
    encoder, objective = settings.encoder, Objective(settings)
    width, sides = encoder.vector_size, [data.history]
    has_head = objective.parts.negative and encoder.history_kind.reads_signs
    if objective.parts.negative and not has_head:
        if data.negative is None:
            raise InputError(
                f"a term of the loss predicts dislikes, but encoder.history {encoder.history} does not tell them from "
                "likes; remove the term from loss.terms, or use --encoder.history positive or signed"
            )
        sides.append(data.negative)
    if objective.parts.likes:
        sides.append(data.history)
    users = -(-min(settings.train.batch_size, len(data)) // num_workers)
    targets = sum(_largest_targets(side, encoder.positions, users) for side in sides)
    looked_up = targets
    if objective.parts.contrast and data.negative is not None:
        looked_up += _largest_targets(data.negative, encoder.positions, users)
    wins = num_items > num_workers * targets + min(looked_up, num_items)
    is_sharded = num_workers > 1 and (settings.item_table == "sharded" or (settings.item_table == "auto" and wins))

    rows = -(-(num_items + 1) // num_workers) if is_sharded else num_items + 1
    shards = num_workers if is_sharded else 1
    tokens = -(-targets // settings.train.accumulation)
    activations = None
    if on_gpu and num_workers == 1 and may_record(settings):
        slots = plan_slots(data, encoder, objective.parts, settings.train.batch_size)
        activations, tokens = _recorded_activations(settings, slots, num_items, has_head=has_head), sum(slots.room)
    length = min(encoder.positions, max(int(max(side.lengths.max(initial=1) for side in sides)), 1))
    block = block_size(encoder, length)
    each = NARROW if settings.train.precision == "bfloat16" else FLOAT
    per_token = encoder.num_blocks * block.activations_per_token * each + FLOAT * (8 if has_head else 6) * width
    softmax = (1 + 3 * shards) * tokens * width
    # From the second part on, the softmax's gradient of all rows exists before it is added to the sum.
    passing = objective.cross_entropy.touches_all_rows and settings.train.accumulation > 1
    encoders = 4 * FLOAT * _encoder_parameters(encoder, block, len(sides), has_head=has_head)
    copies = settings.checkpoint.background and not on_gpu
    return StepPlan(
        is_sharded=is_sharded,
        table=FLOAT * rows * width,
        table_training=3 * FLOAT * rows * width,
        encoders=encoders,
        activations=tokens * per_token + FLOAT * softmax if activations is None else activations,
        passing=passing * FLOAT * rows * width,
        logits=objective.cross_entropy.bytes(StepExtent(tokens, rows, num_items, shards, on_gpu), settings),
        data=data.nbytes,
        checkpoint=(3 * FLOAT * rows * width + encoders * 3 // 4) if copies else 0,
    )


def _encoder_parameters(encoder: EncoderSettings, block: BlockSize, count: int, *, has_head: bool) -> int:
    """Of `count` encoders, the signs and the head."""
    width = encoder.hidden_size
    each = encoder.num_blocks * block.parameters + encoder.positions * width + 2 * width
    return count * each + 2 * width * encoder.history_kind.reads_signs + (width * width + width) * has_head


def _recorded_activations(settings: Settings, slots: SlotPlan, num_items: int, *, has_head: bool) -> int:
    """Of a step that is recorded as a CUDA graph: of all slots, and the softmax's inputs."""
    encoder, width = settings.encoder, settings.encoder.vector_size
    each = NARROW if settings.train.precision == "bfloat16" else FLOAT
    main = slots.sides[0].tokens
    tokens = sum(side.tokens for side in slots.sides) + main * encoder.history_kind.reads_likes_too
    block = block_size(encoder, max(length for side in slots.sides for _, length in side.groups))
    per_token = block.activations_on_gpu if block.activations_on_gpu is not None else block.activations_per_token
    contrasted = main + sum(users for users, _ in slots.sides[0].groups) * (encoder.positions + 1)
    looked_up = min(tokens + (contrasted if settings.loss.beta else 0), num_items + 1)
    copies = TOKEN_COPIES * tokens + LOOKED_UP_COPIES * looked_up + 4 * sum(slots.room) + 2 * has_head * tokens
    return int(encoder.num_blocks * per_token * each * tokens + FLOAT * width * copies) + GPU_WORKSPACES


def _largest_targets(side: Ragged, positions: int, users: int) -> int:
    """Targets of the `users` users with the most of them."""
    targets = np.clip(side.lengths - 1, 0, positions)
    return int(np.sort(targets)[-users:].sum())
