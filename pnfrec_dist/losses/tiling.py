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


MAX_SPLITS, MIN_TILES = 8, 4
"""Each split has results of its own, which must be summed, and reads at least so many tiles."""
ENOUGH_USED = 0.93
"""Share of a GPU's time that is used, with which no further splits are tried."""


def kernel_tile(width: int) -> tuple[int, int, int, dict[str, int]]:
    """Of the fused kernels: (rows that a program owns, rows that it reads at a time, width rounded up to a power of
    two, {warps, pipeline stages})."""
    tile_w = max(1 << (width - 1).bit_length(), 16)
    if programs_at_once(width) == 2:
        return 64, 128, tile_w, {"num_warps": 4, "num_stages": 3 if tile_w <= 64 else 2}
    return 128, 64, tile_w, {"num_warps": 8, "num_stages": 3}


def programs_at_once(width: int) -> int:
    """Programs of the fused kernels that run on a processor of a GPU at a time."""
    return 2 if width <= 128 else 1


def kernel_memory(width: int) -> int:
    """Bytes of shared memory that a program of the fused kernels needs (a test compiles them)."""
    return (160 if programs_at_once(width) == 1 else 82) * 1024


def fewest_splits(blocks: int, longest: int, at_once: int) -> int:
    """How many programs should share the work of each of `blocks` blocks of rows: the fewest that keep a GPU busy.

    Programs run in rounds, at_once at a time, so a last round with few programs wastes most of its time. longest: tiles
    that a program reads without splits.
    """
    used = {}
    for splits in range(1, max(min(MAX_SPLITS, longest // MIN_TILES), 1) + 1):
        programs = blocks * splits
        used[splits] = programs / max(-(-programs // at_once) * at_once, 1)
    enough = min(ENOUGH_USED, max(used.values()))
    return next(splits for splits, share in used.items() if share >= enough)
