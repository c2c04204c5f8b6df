import pytest
import torch

from pnfrec_dist.model.dropout import Dropout, dropout
from pnfrec_dist.model.sasrec_block import causal_attention


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("shape", [(1_000_003,), (501, 401, 5)])
def test_a_share_p_is_zero_and_the_rest_makes_up_for_it(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64)
    y = dropout(x, p)
    assert y.shape == x.shape
    assert abs((y == 0).double().mean().item() - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5 + 1 / 2**16
    kept = y[y != 0]
    assert (kept == kept[0]).all() and kept[0].item() == pytest.approx(1 / (1 - p), rel=2e-4)
    assert abs(y.mean().item() - 1) < 5 * (p / (1 - p) / x.numel()) ** 0.5


def test_neighbours_are_independent() -> None:
    """Four elements share a draw of 64 bits."""
    torch.manual_seed(1)
    zero = (dropout(torch.ones(400_000), 0.3) == 0).double().view(-1, 4)
    correlation = torch.corrcoef(zero.T) - torch.eye(4)
    assert correlation.abs().max() < 0.015


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(1000, dtype=torch.float64).requires_grad_()
    y = dropout(x, 0.4)
    y.backward(torch.full_like(y, 2.0))
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), 2 * y.detach())


def test_the_seed_decides_and_evaluation_leaves_all() -> None:
    layer, x = Dropout(0.5), torch.randn(1000)

    def seeded(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return layer(x)

    assert torch.equal(seeded(3), seeded(3)) and not torch.equal(seeded(3), seeded(4))
    assert layer.eval()(x) is x and dropout(x, 0.0) is x


def test_attention_with_dropout_is_that_without_in_the_mean() -> None:
    """The mean over 4,000 draws is the attention that torch computes, position by position, causal."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64) for _ in range(3))
    plain = causal_attention(q, k, v, 0.0)
    many_q, many_k, many_v = (t.expand(4000, -1, -1, -1) for t in (q, k, v))
    mean = causal_attention(many_q, many_k, many_v, 0.3).mean(0, keepdim=True)
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.06)
    almost = causal_attention(q, k, v, 1e-9)
    torch.testing.assert_close(almost, plain, rtol=0, atol=1e-4)
