"""How the logits of the exact cross-entropy are cut into tiles."""

from dataclasses import dataclass
from typing import Literal

from pnfrec_dist.config.settings import ExactPath

MIN_CHUNK_ROWS, NARROW_MIN_CHUNK_ROWS, GPU_MIN_CHUNK_ROWS = 64, 256, 1024
"""With fewer rows in a chunk, memory limits the matmuls, and two sweeps over tiles are as fast. NARROW: in bfloat16 on
a CPU."""
TILE_ROWS, GPU_TILE_ROWS = 1024, 4096
ROW_MULTIPLE = 128
"""Chunks have a multiple of this many rows, and the last one is padded to it: oneDNN makes a kernel for each new shape,
and its matmuls over the rows are faster."""
MAX_FUSED_WIDTH = 256
"""Wider rows do not fit into a GPU's registers together with a tile."""


@dataclass(frozen=True)
class Tiling:
    """Logits are computed `rows` x `items` at a time. Tiles that span the catalog need one sweep, others two."""

    rows: int
    items: int
    sweep: Literal["one", "two", "fused"]


def plan_tiles(
    rows: int,
    items: int,
    tile_bytes: int,
    path: ExactPath = "auto",
    *,
    logit_bytes: int = 4,
    on_cpu: bool = True,
    can_fuse: bool = False,
) -> Tiling:
    """How `rows` x `items` logits are cut into tiles of at most tile_bytes (materialised: of any size).

    materialised: one tile. chunked: the whole catalog for some rows, three matmuls. tiled: some items for many rows;
    the softmax needs the sum over items first, so there are two sweeps with four matmuls. fused: as tiled, with kernels
    that keep tiles in registers. auto: the first of materialised, fused (if can_fuse), chunked and tiled that fits; a
    chunk must have at least MIN_CHUNK_ROWS, NARROW_MIN_CHUNK_ROWS or GPU_MIN_CHUNK_ROWS rows.
    """
    rows, items = max(rows, 1), max(items, 1)
    room = max(tile_bytes // logit_bytes, 1)
    chunk_rows = min(rows, max(room // items, 1))
    if path == "auto":
        least = GPU_MIN_CHUNK_ROWS if not on_cpu else NARROW_MIN_CHUNK_ROWS if logit_bytes < 4 else MIN_CHUNK_ROWS
        without = "chunked" if chunk_rows >= least else "tiled"
        path = "materialised" if rows * items <= room else "fused" if can_fuse else without
    if path == "materialised":
        return Tiling(rows, items, "one")
    if path == "chunked":
        return Tiling(chunk_rows - chunk_rows % ROW_MULTIPLE or chunk_rows, items, "one")
    tile_rows = min(rows, room, TILE_ROWS if on_cpu else GPU_TILE_ROWS)
    return Tiling(tile_rows, min(items, max(room // tile_rows, 1)), "fused" if path == "fused" else "two")
