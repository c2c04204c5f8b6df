"""Fixed shapes for almost all batches of a training: which users are in which slot of which group.

With the same shapes in every step, a GPU runs a step as one recorded graph (training/step_graph.py). The real tokens
are those of collate.py; only the padding differs.

U training users, B slots of a batch.
"""

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import BatchParts, Groups
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged

NO_USER = -1
SIGMAS = 4
"""Room for this many standard deviations above the mean: one batch in some 10,000 does not fit."""
TARGET_MULTIPLE = 128


@dataclass(frozen=True)
class SidePlan:
    """The slots of one side: those of short windows, then those of any length."""

    lengths_U: np.ndarray
    """tokens of each user"""
    groups: Groups
    span: int
    """longest window that counts as short"""

    @classmethod
    def of(cls, history: Ragged, positions: int, batch_size: int) -> "SidePlan":
        lengths_U = np.clip(history.lengths - 1, 0, positions)
        longest, span = max(int(lengths_U.max(initial=1)), 1), -(-positions // 2)
        long = min(_with_room(lengths_U > span, batch_size), batch_size)
        short_length = min(span, longest)
        groups = ((batch_size - long, short_length), (long, longest))
        return cls(lengths_U, tuple(group for group in groups if group[0]), span)

    @property
    def tokens(self) -> int:
        """Tokens of all slots."""
        return sum(users * length for users, length in self.groups)

    def place(self, rows: np.ndarray) -> np.ndarray | None:
        """The user of each slot, [B]: short windows first. None if there are too many long ones."""
        slots, lengths = sum(users for users, _ in self.groups), self.lengths_U[rows]
        order = np.argsort(lengths, kind="stable")
        placed = np.full(slots, NO_USER, dtype=np.int64)
        placed[slots - len(rows) :] = rows[order]
        short, end = sum(users for users, _ in self.groups[:-1]), slots - len(rows)
        fits = short <= end or lengths[order[short - end - 1]] <= self.span
        return placed if fits else None


@dataclass(frozen=True)
class SlotPlan:
    """The slots of all sides, and room for their targets."""

    sides: tuple[SidePlan, ...]
    """of the main side, and of the negative encoder if there is one"""
    targets_U: tuple[np.ndarray, ...]
    """targets of each user: of the main side, and of the negative side and the likes' side if there are any"""
    room: tuple[int, ...]
    """most targets of a batch, in the same order"""

    def place(self, rows: np.ndarray) -> np.ndarray | None:
        """The user of each slot, [sides, B]; NO_USER for none. None if these users do not fit the shapes."""
        if any(of_user_U[rows].sum() > room for of_user_U, room in zip(self.targets_U, self.room, strict=True)):
            return None
        placed = [side.place(rows) for side in self.sides]
        found = [slots for slots in placed if slots is not None]
        return np.stack(found) if len(found) == len(placed) else None


def plan_slots(data: TrainData, encoder: EncoderSettings, wanted: BatchParts, batch_size: int) -> SlotPlan:
    """Shapes that almost every batch of batch_size users fits.

    wanted: the parts that the loss needs.
    """
    batch_size = min(batch_size, len(data))
    sides = [SidePlan.of(data.history, encoder.positions, batch_size)]
    targets = [sides[0].lengths_U]
    if encoder.history_kind.reads_signs:
        tokens_U = sides[0].lengths_U
        likes_U = _likes(data.history, tokens_U)
        targets = [likes_U, tokens_U - likes_U] if wanted.negative else [likes_U]
        if wanted.likes:  # all likes of a window but its first one
            targets.append((_likes(data.history, np.minimum(tokens_U + 1, data.history.lengths)) - 1).clip(min=0))
    elif wanted.negative:
        assert data.negative is not None
        sides.append(SidePlan.of(data.negative, encoder.positions, batch_size))
        targets.append(sides[1].lengths_U)
    room = []
    for of_user_U, side in zip_longest(targets, sides, fillvalue=sides[0]):
        assert isinstance(of_user_U, np.ndarray) and isinstance(side, SidePlan)
        wanted_room = _with_room(of_user_U, batch_size)
        room.append(min(wanted_room + -wanted_room % TARGET_MULTIPLE, side.tokens))
    return SlotPlan(tuple(sides), tuple(targets), tuple(room))


def _with_room(values_U: np.ndarray, batch_size: int) -> int:
    """The sum over batch_size random users, with room for chance (draws without replacement)."""
    left = max(len(values_U) - batch_size, 0) / max(len(values_U) - 1, 1)
    deviation = float(values_U.std()) * np.sqrt(batch_size * left)
    return int(np.ceil(batch_size * float(values_U.mean()) + SIGMAS * deviation))


def _likes(history: Ragged, lengths_U: np.ndarray) -> np.ndarray:
    """Likes among each user's newest items, lengths_U of them."""
    before = np.concatenate([[0], np.cumsum(history.values > 0)])
    ends = history.offsets[1:]
    return before[ends] - before[ends - lengths_U]
