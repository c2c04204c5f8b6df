"""Ragged histories -> the packed tensors of batches.py.

B users, P tokens, N negatives of a user.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import BatchParts, Contrast, Groups, HistoryBatch, Sampled, Sequences, TrainBatch
from pnfrec_dist.data.item_sampler import Draw
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.schema import PAD_ID

MAX_GROUPS = {"cpu": 8, "cuda": 2}
"""On a GPU, a further group costs more kernel launches than the padding it saves."""
MARKS_PER_ID = 64
"""Distinct ids are found by a mark for each possible id, unless these are so many more than the ids of a batch."""


@dataclass(frozen=True)
class _Packed:
    """Windows as item ids, or as ids with signs: [P] each; `users` are indices into the requested rows, without users
    who have no token."""

    inputs: np.ndarray
    targets: np.ndarray
    groups: Groups
    users: np.ndarray
    lengths: np.ndarray


def train_batch(
    data: TrainData,
    rows: np.ndarray,
    encoder: EncoderSettings,
    wanted: BatchParts,
    device: torch.device,
    draw: Draw | None = None,
) -> TrainBatch:
    """The batch of users `rows`: for each side the newest encoder.positions + 1 items, as inputs and targets.

    draw: the items sampled for this step, if the loss samples items.
    """
    max_groups, reads_signs = MAX_GROUPS[device.type], encoder.history_kind.reads_signs
    window = _next_items(data.history, rows, encoder.positions, max_groups)
    likes, dislikes = np.maximum(window.targets, PAD_ID), np.maximum(-window.targets, PAD_ID)
    main = replace(window, inputs=np.abs(window.inputs), targets=likes if reads_signs else likes + dislikes)
    sides = [main]
    if wanted.negative and reads_signs:
        sides.append(replace(main, targets=dislikes))
    elif wanted.negative:
        assert data.negative is not None
        sides.append(_next_items(data.negative, rows, encoder.positions, max_groups))
    if wanted.likes:
        sides.append(replace(main, targets=_next_likes(window)))
    windows = sides[:1] if reads_signs else sides  # all sides of a signed history have the same inputs
    parts = [side.inputs for side in windows]
    if wanted.contrast:
        parts += _contrasted(data, rows, window, encoder.positions)
    if draw is not None:
        parts += [side.targets[side.targets != PAD_ID] for side in sides] + [draw.items]
    items, places = _distinct(parts)
    tensors = iter([torch.from_numpy(p).to(device) for p in places])
    inputs = [next(tensors) for _ in windows] * (len(sides) // len(windows))
    contrast = None
    if wanted.contrast:
        num_tokens = int(np.count_nonzero(parts[len(windows)]))
        contrast = Contrast(next(tensors), next(tensors), num_tokens)
    target_places = [next(tensors) if draw is not None else None for _ in sides]
    is_disliked_P = torch.from_numpy(window.inputs < 0).to(device) if reads_signs else None
    sequences = [
        _sequences(side, own_inputs, own_targets, is_disliked_P, device)
        for side, own_inputs, own_targets in zip(sides, inputs, target_places, strict=True)
    ]
    return TrainBatch(
        items_U=torch.from_numpy(items).to(device),
        main=sequences[0],
        negative=sequences[1] if wanted.negative else None,
        contrast=contrast,
        sampled=_sampled(draw, next(tensors), device) if draw is not None else None,
        likes=sequences[-1] if wanted.likes else None,
    )


def history_batch(histories: Ragged, rows: np.ndarray, max_length: int, device: torch.device) -> HistoryBatch:
    """The newest max_length items of each user; a user without items has one padding token.

    histories: item ids, or ids with signs (ragged.py: signed).
    """
    lengths = np.minimum(histories.lengths[rows], max_length)
    starts = histories.offsets[rows + 1] - lengths
    order, groups = _grouped(np.maximum(lengths, 1), max_length, MAX_GROUPS[device.type])
    inputs = _windows(histories.values, starts[order], lengths[order], groups)
    items, (places,) = _distinct([np.abs(inputs)])
    last = np.empty(len(rows), dtype=np.int64)
    first_token = np.concatenate([[0], np.cumsum(_token_lengths(groups))])[:-1]
    last[order] = first_token + np.maximum(lengths[order] - 1, 0)
    as_tensor = [torch.from_numpy(v).to(device) for v in (items, places, inputs < 0, last)]
    return HistoryBatch(as_tensor[0], as_tensor[1], as_tensor[2], groups, as_tensor[3])


def _contrasted(data: TrainData, rows: np.ndarray, window: _Packed, positions: int) -> list[np.ndarray]:
    """[next positive item after each positive token [P], negative items of each user [B, N]] as item ids.

    window: of data.history. The negatives are the newest positions + 1 of S^n, or those of the window if the history
    has both kinds.
    """
    users = rows[window.users]
    if data.negative is not None:
        return [window.targets, data.negative.newest(users, positions + 1)[0]]
    newest, _ = data.history.newest(users, positions + 1)
    is_negative = newest < 0
    order = np.argsort(~is_negative, axis=1, kind="stable")[:, : max(int(is_negative.sum(1).max(initial=0)), 1)]
    negatives = np.take_along_axis(np.maximum(-newest, PAD_ID), order, axis=1)
    return [_next_likes(window), negatives]


def _next_likes(window: _Packed) -> np.ndarray:
    """The next like after each like, as item ids; PAD_ID for none, and after dislikes: [P]. window: with signs."""
    following, token = [], 0
    for members, length in window.groups:
        own = slice(token, token := token + members * length)
        targets, inputs = (values[own].reshape(members, length) for values in (window.targets, window.inputs))
        place = np.where(targets > 0, np.arange(length), length)
        place = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(targets, ((0, 0), (0, 1)), constant_values=PAD_ID)
        following.append(np.where(inputs > 0, np.take_along_axis(padded, place, axis=1), PAD_ID).ravel())
    return np.concatenate([*following, np.empty(0, dtype=np.int64)])


def _next_items(histories: Ragged, rows: np.ndarray, max_length: int, max_groups: int) -> _Packed:
    lengths = np.clip(histories.lengths[rows] - 1, 0, max_length)
    starts = histories.offsets[rows + 1] - lengths - 1
    order, groups = _grouped(lengths, max_length, max_groups)
    inputs, targets = (_windows(histories.values, starts[order] + shift, lengths[order], groups) for shift in (0, 1))
    return _Packed(inputs, targets, groups, order, lengths[order])


def _grouped(lengths: np.ndarray, max_length: int, max_groups: int) -> tuple[np.ndarray, Groups]:
    """(rows with a token, in order of their group; the groups). A group covers max_length / max_groups lengths."""
    span = -(-max_length // max_groups)
    group = -(-lengths // span)
    order = np.argsort(group, kind="stable")
    order = order[np.searchsorted(group[order], 1) :]
    _, firsts = np.unique(group[order], return_index=True)
    members = [lengths[part] for part in np.split(order, firsts[1:])] if len(order) else []
    return order, tuple((len(part), int(part.max())) for part in members)


def _windows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, groups: Groups) -> np.ndarray:
    """values[start:start + length] of each user, padded to its group's length: [P]."""
    ids, user = [], 0
    for users, length in groups:
        place = np.arange(length)
        own = slice(user, user + users)
        real = place < lengths[own, None]
        window = np.full(real.shape, PAD_ID, dtype=np.int64)
        window[real] = values[(starts[own, None] + place)[real]]
        ids.append(window.ravel())
        user += users
    return np.concatenate([*ids, np.empty(0, dtype=np.int64)])


def _token_lengths(groups: Groups) -> np.ndarray:
    """Tokens of each user, padding included."""
    return np.repeat([length for _, length in groups], [users for users, _ in groups]).astype(np.int64)


def _distinct(parts: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(ascending distinct ids with PAD_ID first, for each part the places of its ids among them)."""
    ids = np.concatenate([[PAD_ID], *(p.ravel() for p in parts)])
    largest = int(ids.max())
    if largest <= MARKS_PER_ID * len(ids):  # faster than sorting
        is_there = np.zeros(largest + 1, dtype=bool)
        is_there[ids] = True
        items = np.flatnonzero(is_there)
        place_of = np.empty(largest + 1, dtype=np.int64)
        place_of[items] = np.arange(len(items))
        places = place_of[ids]
    else:
        items, places = np.unique(ids, return_inverse=True)
    bounds = np.cumsum([1, *(p.size for p in parts)])
    return items, [places[a:b].reshape(p.shape) for (a, b), p in zip(pairwise(bounds), parts, strict=True)]


def _sequences(
    packed: _Packed,
    inputs_P: Tensor,
    target_places_T: Tensor | None,
    is_disliked_P: Tensor | None,
    device: torch.device,
) -> Sequences:
    places = np.flatnonzero(packed.targets)
    return Sequences(
        inputs_P=inputs_P,
        groups=packed.groups,
        places_T=torch.from_numpy(places).to(device),
        targets_T=torch.from_numpy(packed.targets[places]).to(device),
        target_places_T=target_places_T,
        is_disliked_P=is_disliked_P,
    )


def _sampled(draw: Draw, places_K: Tensor, device: torch.device) -> Sampled:
    items, drawn, log_expected = (torch.from_numpy(v).to(device) for v in (draw.items, draw.drawn, draw.log_expected))
    return Sampled(places_K, items, drawn, log_expected, int(draw.drawn.sum()))
