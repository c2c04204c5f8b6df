"""What train.precision auto means on a device."""

from dataclasses import replace
from typing import Literal

import torch

from pnfrec_dist.config.settings import Settings

Precision = Literal["float32", "bfloat16"]
AMX_WIDTH, AMX_SIZE = 32, 12_000
"""With a smaller hidden size, or a smaller product of hidden size and train.batch_size, a step in bfloat16 takes as
long as one in float32 or longer (docs/decisions.md)."""


def with_precision(settings: Settings, precision: Precision) -> Settings:
    return replace(settings, train=replace(settings.train, precision=precision))


def fastest_precision(settings: Settings, *, on_gpu: bool) -> Precision:
    """train.precision; if it is auto, what is faster on this machine.

    That is bfloat16 on GPUs with bf16 matmuls (compute capability 8.0) and, for steps of AMX_WIDTH and AMX_SIZE, on
    CPUs with AMX. on_gpu without a GPU, as on a cluster's head, counts as such a GPU.
    """
    precision = settings.train.precision
    if precision != "auto":
        return precision
    if on_gpu:
        is_narrow = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        width = settings.encoder.hidden_size
        is_narrow = has_amx() and width >= AMX_WIDTH and width * settings.train.batch_size >= AMX_SIZE
    return "bfloat16" if is_narrow else "float32"


def with_fastest_precision(settings: Settings, *, on_gpu: bool) -> Settings:
    """The settings with what fastest_precision says."""
    return with_precision(settings, fastest_precision(settings, on_gpu=on_gpu))


def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles (Intel AMX)."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
