"""The exact cross-entropy over the full catalog (paper, section 3.2), from settings; cross_entropy.py computes it."""

from importlib.util import find_spec

import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.catalog_loss import FLOAT, NARROW, CatalogLoss, StepExtent, Targets
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.tiling import (
    MAX_FUSED_WIDTH,
    Tiling,
    fewest_splits,
    kernel_memory,
    kernel_tile,
    plan_tiles,
    programs_at_once,
)
from pnfrec_dist.model.item_table import ItemTable

CPU_TILE_MIB, GPU_TILE_MIB = 16, 256
H100_PROCESSORS, LARGE_GPU_MEMORY = 132, 227 * 1024
"""What the memory plan assumes of a GPU, and the bytes of shared memory of one that does not tell them."""


class Exact(CatalogLoss):
    """-log softmax over all items, without the logits in memory."""

    touches_all_rows = True

    def __call__(self, targets: Targets, table: ItemTable, settings: Settings) -> tuple[Tensor, Tensor]:
        rows = table.shards.size * len(targets.targets_T)
        tiling = plan_softmax(settings, rows, len(table.weight), on_gpu=targets.hidden_TD.is_cuda)
        dtype = torch.bfloat16 if settings.train.precision == "bfloat16" else None
        return cross_entropy(
            targets.hidden_TD, table, targets.targets_T, targets.weights_T, tiling, dtype, targets.bounds
        )

    def bytes(self, extent: StepExtent, settings: Settings) -> int:
        tiling = plan_softmax(settings, extent.shards * extent.targets, extent.rows, on_gpu=extent.on_gpu)
        width, is_narrow = settings.encoder.vector_size, settings.train.precision == "bfloat16"
        if tiling.sweep == "fused":  # no tile outside the kernels, but a narrow copy of the classes
            targets = extent.shards * extent.targets
            return NARROW * width * extent.rows + FLOAT * width * _most_split_rows(targets, extent.rows, width)
        product = FLOAT if extent.on_gpu and is_narrow else 0  # logits in float32 before they are in the tile
        of_tile = (_logit_bytes(settings, on_gpu=extent.on_gpu) + product) * tiling.rows * tiling.items
        if not is_narrow or tiling.sweep == "two":
            return of_tile
        # The narrow classes, the transposed gradient, and a chunk's part of it.
        return of_tile + (NARROW + FLOAT + (FLOAT if extent.on_gpu else NARROW)) * width * tiling.items

    def ways_to_save(self, settings: Settings) -> dict[str, float]:
        is_large = settings.loss.exact_path in ("materialised", "chunked")
        return {
            "--loss.exact-path auto or --loss.cross-entropy sampled_softmax": 1.0 if is_large else 0.0,
            "a smaller --loss.tile-mib": 0.75 if settings.loss.tile_mib else 0.0,
        }


EXACT = Exact()


def plan_softmax(settings: Settings, rows: int, items: int, *, on_gpu: bool) -> Tiling:
    """How the exact cross-entropy of rows x items logits is computed on this kind of device.

    Raises InputError if loss.exact_path does not work there.
    """
    loss = settings.loss
    fits = settings.train.precision == "bfloat16" and settings.encoder.vector_size <= MAX_FUSED_WIDTH
    can_fuse = on_gpu and fits and find_spec("triton") is not None and _has_room(settings.encoder.vector_size)
    if loss.exact_path == "fused" and not can_fuse:
        narrow = f"train.precision bfloat16 and encoder.hidden_size <= {MAX_FUSED_WIDTH} (half with history both)"
        lacks = "GPU workers" if not on_gpu else "Triton, which comes with torch for NVIDIA GPUs" if fits else narrow
        raise InputError(f"loss.exact_path is 'fused', which needs {lacks}; use auto")
    tile_bytes = int((loss.tile_mib or (GPU_TILE_MIB if on_gpu else CPU_TILE_MIB)) * 2**20)
    logit_bytes = _logit_bytes(settings, on_gpu=on_gpu)
    return plan_tiles(
        rows, items, tile_bytes, loss.exact_path, logit_bytes=logit_bytes, on_cpu=not on_gpu, can_fuse=can_fuse
    )


def _has_room(width: int) -> bool:
    """Whether this machine's GPU, if there is one, has the shared memory that the fused kernels need."""
    if not torch.cuda.is_available():
        return True
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return getattr(properties, "shared_memory_per_block_optin", LARGE_GPU_MEMORY) >= kernel_memory(width)


def _most_split_rows(targets: int, rows: int, width: int) -> int:
    """Rows of the results of all splits: of hidden states, or of the table's gradient. 0 without splits."""
    own, passing, _, _ = kernel_tile(width)
    found = [0]
    for of_program, of_other in ((targets, rows), (rows, targets)):
        splits = fewest_splits(
            -(-of_program // own), -(-of_other // passing), H100_PROCESSORS * programs_at_once(width)
        )
        found.append(splits * of_program if splits > 1 else 0)
    return max(found)


def _logit_bytes(settings: Settings, *, on_gpu: bool) -> int:
    """A CPU's logits have the dtype of its matmuls, a GPU's are float32."""
    return NARROW if settings.train.precision == "bfloat16" and not on_gpu else FLOAT
