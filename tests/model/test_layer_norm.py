"""Layer norm in the dtype of its input."""

import pytest
import torch
from helpers.ranks import DEVICES

from pnfrec_dist.model.layer_norm import EPS, LayerNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_the_dtype_stays_and_values_and_gradients_are_right(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(24).to(device)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)
        norm.bias.normal_(0, 0.3)
    x = torch.randn(50, 24, device=device).to(dtype).requires_grad_()
    upstream = torch.randn(50, 24, device=device).to(dtype)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = norm(x)
    y.backward(upstream)
    wide = x.detach().double().requires_grad_()
    weight, bias = norm.weight.detach().double().requires_grad_(), norm.bias.detach().double().requires_grad_()
    expected = torch.nn.functional.layer_norm(wide, (24,), weight, bias, EPS)
    expected.backward(upstream.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert y.dtype == dtype and norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32
    pairs = ((y, expected), (x.grad, wide.grad), (norm.weight.grad, weight.grad), (norm.bias.grad, bias.grad))
    for found, wanted in pairs:
        assert found is not None and wanted is not None
        scale = max(wanted.abs().max().item(), 1.0)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * scale)
