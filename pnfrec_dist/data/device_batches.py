"""Training batches of fixed shapes, made on the device where the histories lie.

The tensors are those of collate.py with more padding, so the loss is the same to rounding. Every operation has shapes
that depend on the plan alone, and none waits for the device.

S sides, B slots of a batch, P tokens, T room for targets, N negatives of a user.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import BatchParts, Contrast, Groups, Sequences, TrainBatch
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.data.slots import SlotPlan


@dataclass(frozen=True)
class _Lists:
    """A Ragged on the device."""

    offsets: Tensor
    values: Tensor

    @classmethod
    def of(cls, lists: Ragged, device: torch.device) -> "_Lists":
        values = lists.values if len(lists.values) else np.zeros(1, dtype=np.int32)  # padding reads the first value
        return cls(torch.tensor(lists.offsets, device=device), torch.tensor(values, device=device))

    def window(self, rows_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """(inputs, next items) of the newest length + 1 values, [B, length] each; NO_USER has none."""
        starts_B, ends_B = self.offsets[rows_B.clamp(min=0)], self.offsets[rows_B.clamp(min=0) + 1]
        lengths_B = (ends_B - starts_B - 1).clamp(min=0, max=length)
        first_B = ends_B - lengths_B - 1
        return self._padded(rows_B, first_B, lengths_B, length), self._padded(rows_B, first_B + 1, lengths_B, length)

    def newest(self, rows_B: Tensor, length: int) -> Tensor:
        """The newest values, [B, length]; NO_USER has none."""
        starts_B, ends_B = self.offsets[rows_B.clamp(min=0)], self.offsets[rows_B.clamp(min=0) + 1]
        lengths_B = (ends_B - starts_B).clamp(max=length)
        return self._padded(rows_B, ends_B - lengths_B, lengths_B, length)

    def _padded(self, rows_B: Tensor, first_B: Tensor, lengths_B: Tensor, length: int) -> Tensor:
        """values[first:first + lengths], padded on the right."""
        place = torch.arange(length, device=rows_B.device)
        is_real_BL = place < (lengths_B * (rows_B >= 0))[:, None]
        at_BL = (first_B[:, None] + place).masked_fill(~is_real_BL, 0)
        return self.values[at_BL].long().masked_fill(~is_real_BL, PAD_ID)


@dataclass(frozen=True)
class _Windows:
    """One side's inputs and next items, with signs if the lists have them: [P] each."""

    inputs: Tensor
    targets: Tensor
    groups: Groups


@dataclass(frozen=True)
class DeviceBatches:
    """Makes the batches of a plan."""

    plan: SlotPlan
    encoder: EncoderSettings
    wanted: BatchParts
    num_items: int
    history: _Lists
    negative: _Lists | None

    @classmethod
    def of(
        cls,
        data: TrainData,
        plan: SlotPlan,
        encoder: EncoderSettings,
        wanted: BatchParts,
        num_items: int,
        device: torch.device,
    ) -> "DeviceBatches":
        """wanted: the parts that the loss needs."""
        needs_negative = data.negative is not None and (wanted.negative or wanted.contrast)
        negative = _Lists.of(data.negative, device) if needs_negative and data.negative is not None else None
        return cls(plan, encoder, wanted, num_items, _Lists.of(data.history, device), negative)

    def batch(self, rows_SB: Tensor) -> TrainBatch:
        """The batch of the users that SlotPlan.place gave, as int64 on the device."""
        reads_signs, positions = self.encoder.history_kind.reads_signs, self.encoder.positions
        main = self._windows(self.history, rows_SB[0], 0)
        likes, dislikes = main.targets.clamp(min=0), (-main.targets).clamp(min=0)
        sides = [replace(main, inputs=main.inputs.abs(), targets=likes if reads_signs else likes + dislikes)]
        if self.wanted.negative and reads_signs:
            sides.append(replace(sides[0], targets=dislikes))
        elif self.wanted.negative:
            assert self.negative is not None
            sides.append(self._windows(self.negative, rows_SB[1], 1))
        if self.wanted.likes:
            sides.append(replace(sides[0], targets=_next_likes(main)))
        ids = [sides[0].inputs] if reads_signs else [side.inputs for side in sides]
        if self.wanted.contrast:
            ids += self._contrasted(main, rows_SB[0], positions)
        items_U, places = self._looked_up(ids)
        inputs = places[:1] * len(sides) if reads_signs else places[: len(sides)]
        is_disliked_P = main.inputs < 0 if reads_signs else None
        contrast = None
        if self.wanted.contrast:
            next_P, negatives_BN = places[-2:]
            contrast = Contrast(next_P, negatives_BN, torch.count_nonzero(ids[-2]))
        sequences = [
            self._sequences(side, own_inputs, is_disliked_P, number)
            for number, (side, own_inputs) in enumerate(zip(sides, inputs, strict=True))
        ]
        return TrainBatch(
            items_U=items_U,
            main=sequences[0],
            negative=sequences[1] if self.wanted.negative else None,
            contrast=contrast,
            sampled=None,
            likes=sequences[-1] if self.wanted.likes else None,
            has_all_items=len(items_U) == self.num_items + 1,
        )

    def _windows(self, lists: _Lists, rows_B: Tensor, side: int) -> _Windows:
        groups = self.plan.sides[side].groups
        parts = zip(rows_B.split([users for users, _ in groups]), groups, strict=True)
        windows = [lists.window(rows_G, length) for rows_G, (_, length) in parts]
        inputs, targets = (torch.cat([part.flatten() for part in side]) for side in zip(*windows, strict=True))
        return _Windows(inputs, targets, groups)

    def _contrasted(self, main: _Windows, rows_B: Tensor, positions: int) -> list[Tensor]:
        """As in collate.py, as item ids: [next positive after each positive token [P], negatives of each user]."""
        if self.negative is not None:
            return [main.targets, self.negative.newest(rows_B, positions + 1)]
        newest = self.history.newest(rows_B, positions + 1)
        return [_next_likes(main), (-newest).clamp(min=PAD_ID)]

    def _looked_up(self, ids: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """(the items to look up, the places of the ids among them): all items, if these are not more than the ids."""
        count = sum(part.numel() for part in ids)
        if self.num_items <= count:
            return torch.arange(self.num_items + 1, device=ids[0].device), ids
        joined = torch.cat([part.flatten() for part in ids])
        number = torch.arange(1, count + 1, device=joined.device)
        # Padding is place 0. Its own places look up different items: sums over equal rows are slow.
        items_U = torch.cat([joined.new_zeros(1), torch.where(joined != PAD_ID, joined, number)])
        places = number.masked_fill(joined == PAD_ID, 0).split([part.numel() for part in ids])
        return items_U, [at.view(part.shape) for at, part in zip(places, ids, strict=True)]

    def _sequences(self, side: _Windows, inputs_P: Tensor, is_disliked_P: Tensor | None, number: int) -> Sequences:
        """Side number 0 is padded in front and the others at the end, so that the real targets of two sides form one
        range."""
        room, device = self.plan.room[number], inputs_P.device
        is_target_P = side.targets != PAD_ID
        count, order_P = torch.count_nonzero(is_target_P), is_target_P.cumsum(0) - 1
        first = room - count if number == 0 else torch.zeros_like(count)
        place_P = (first + order_P).masked_fill(~is_target_P, room)
        places_T = place_P.new_zeros(room + 1).scatter_(0, place_P, torch.arange(len(place_P), device=device))[:room]
        place_T = torch.arange(room, device=device)
        is_real_T = (place_T >= first) & (place_T < first + count)
        spread_T = 1 + place_T % self.num_items  # sums over equal rows of the table would be slow
        return Sequences(
            inputs_P=inputs_P,
            groups=side.groups,
            places_T=places_T,
            targets_T=torch.where(is_real_T, side.targets[places_T], spread_T),
            target_places_T=None,
            is_disliked_P=is_disliked_P,
            is_real_T=is_real_T,
        )


def _next_likes(window: _Windows) -> Tensor:
    """As in collate.py: [P]."""
    following = []
    tokens = [users * length for users, length in window.groups]
    for (users, length), *parts in zip(
        window.groups, window.inputs.split(tokens), window.targets.split(tokens), strict=True
    ):
        inputs, targets = (part.view(users, length) for part in parts)
        place = torch.arange(length, device=targets.device).expand(users, -1).masked_fill(targets <= 0, length)
        place = place.flip(1).cummin(1).values.flip(1)
        found = F.pad(targets, (0, 1), value=PAD_ID).gather(1, place)
        following.append(found.masked_fill(inputs <= 0, PAD_ID).flatten())
    return torch.cat(following)
