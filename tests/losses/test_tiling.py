"""How logits are cut into tiles."""

import pytest

from pnfrec_dist.config.settings import ExactPath
from pnfrec_dist.losses.tiling import MIN_CHUNK_ROWS, plan_tiles


@pytest.mark.parametrize("path", ["auto", "materialised", "chunked", "tiled"])
@pytest.mark.parametrize("rows", [0, 1, 500, 31_000])
@pytest.mark.parametrize("items", [1, 3_412, 100_000, 10_000_000])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_tile_keeps_its_bound(path: ExactPath, rows: int, items: int, on_cpu: bool) -> None:
    """A chunk has one row at least; only materialised may exceed the bound otherwise."""
    for tile_bytes in (4, 10**6, 10**8):
        tiling = plan_tiles(rows, items, tile_bytes, path, on_cpu=on_cpu)
        if path != "materialised":
            assert 4 * tiling.rows * tiling.items <= max(tile_bytes, 4 * items if path == "chunked" else 0)
        assert 1 <= tiling.rows <= max(rows, 1) and 1 <= tiling.items <= items
        assert tiling.items == items or tiling.sweep != "one"


def test_auto_takes_the_first_path_that_fits() -> None:
    assert plan_tiles(500, 1_000, 2**21) == plan_tiles(500, 1_000, 2**21, "materialised")
    assert plan_tiles(31_000, 3_412, 2**23) == plan_tiles(31_000, 3_412, 2**23, "chunked")
    assert plan_tiles(31_000, 2**21 // MIN_CHUNK_ROWS, 2**23).sweep == "one"
    assert plan_tiles(31_000, 1_000_000, 2**23) == plan_tiles(31_000, 1_000_000, 2**23, "tiled")
