"""Matmuls with few shapes: rows covered once or twice, results and gradients beside float64."""

import pytest
import torch
from helpers.slow_losses import random
from torch import Tensor, nn

from pnfrec_dist.model import few_shapes
from pnfrec_dist.model.few_shapes import Linear, spans

ROWS = [0, 1, 7, 8, 9, 100, 1_000, 1_024, 4_321]
ROUNDING = 2**-8
"""of bfloat16"""


@pytest.fixture
def shapes_of_matmuls(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The shapes of the left factors of the module's matmuls."""
    seen: set[tuple[int, ...]] = set()
    for name, factor in (("mm", 0), ("addmm", 1)):
        original = getattr(torch, name)

        def counted(*args: Tensor, _original=original, _factor=factor, **options: object) -> Tensor:
            seen.add(tuple(args[_factor].shape))
            return _original(*args, **options)

        monkeypatch.setattr(few_shapes.torch, name, counted)
    return seen


def test_spans_cover_all_rows_in_few_sizes() -> None:
    for rows in range(3_000):
        covered = torch.zeros(rows)
        for own in spans(rows):
            covered[own] += 1
        assert rows == 0 or 1 <= covered.min() <= covered.max() <= 2
    sizes = {own.stop - own.start for rows in range(19_000, 21_000) for own in spans(rows)}
    assert len(sizes) <= 7


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_narrow_linear_layer_equals_float64(rows: int, with_bias: bool) -> None:
    layer = Linear(12, 20, bias=with_bias)
    x_RI = random(rows, 12, seed=1).bfloat16().requires_grad_()
    upstream_RO = random(rows, 20, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out_RO = layer(x_RI)
    assert out_RO.dtype == torch.bfloat16
    out_RO.backward(upstream_RO)
    exact = nn.Linear(12, 20, bias=with_bias).double()
    exact.load_state_dict({name: value.bfloat16().double() for name, value in layer.state_dict().items()})
    exact_RI = x_RI.detach().double().requires_grad_()
    expected_RO = exact(exact_RI)
    expected_RO.backward(upstream_RO.double())
    _assert_narrow_close(out_RO, expected_RO)
    _assert_narrow_close(x_RI.grad, exact_RI.grad)
    for own, of_exact in zip(layer.parameters(), exact.parameters(), strict=True):
        assert own.grad is not None and own.grad.dtype == torch.float32
        _assert_narrow_close(own.grad, of_exact.grad)


def test_other_dtypes_are_torch_s_own() -> None:
    layer, x_RI = Linear(3, 5).double(), random(2, 7, 3, seed=1)
    torch.testing.assert_close(layer(x_RI), nn.functional.linear(x_RI, layer.weight, layer.bias), rtol=0, atol=0)


def test_batches_of_like_size_share_their_shapes(shapes_of_matmuls: set[tuple[int, ...]]) -> None:
    layer = Linear(4, 4)
    for rows in range(19_500, 20_500, 50):
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.zeros(rows, 4, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert len(shapes_of_matmuls) <= 3


def _assert_narrow_close(found: Tensor | None, expected: Tensor | None) -> None:
    assert found is not None and expected is not None
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.double(), expected, rtol=2 * ROUNDING, atol=ROUNDING * scale)
