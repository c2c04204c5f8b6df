"""The GPU kernels of the exact cross-entropy: their arithmetic in Triton's interpreter, and that they compile for GPUs.

The interpreter does not support bfloat16, so float32 and float16 are used. On a GPU, bfloat16 is tested, too.
"""

import itertools
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from helpers.ranks import NEEDS_GPU, spawn
from helpers.slow_losses import random
from torch import Tensor

from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.losses.cross_entropy import cross_entropy
from pnfrec_dist.losses.exact import plan_softmax
from pnfrec_dist.losses.tiling import Tiling, fewest_splits, kernel_memory, kernel_tile, plan_tiles
from pnfrec_dist.model.item_table import ItemTable

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is made for Linux alone")
FUSED = Tiling(128, 128, "fused")
TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-3}
CASES = [(140, 270, 24, 1), (1, 400, 64, 3), (260, 129, 96, 2), (130, 1, 16, 1), (5, 200, 231, 4), (0, 9, 16, 1)]
"""Targets, items, width, splits: no multiple of a tile, several tiles, one item, no target, splits without work."""


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes processes that start after this use Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning")  # numpy also divides masked elements


def softmax_gradients(hidden_TD: Tensor, classes_ND: Tensor, weights_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(lse, the classes' mean under the softmax, gradient of the classes) in float64 with all logits."""
    hidden_TD, classes_ND = hidden_TD.double(), classes_ND.double()
    logits_TN = hidden_TD @ classes_ND.T
    softmax_TN = logits_TN.softmax(1)
    return logits_TN.logsumexp(1), softmax_TN @ classes_ND, (softmax_TN * weights_T[:, None]).T @ hidden_TD


def check_sweeps(_: World) -> None:
    from pnfrec_dist.losses.gpu_kernels import add_class_gradient, softmax_mean

    for (targets, items, width, splits), (dtype, tolerance) in itertools.product(CASES, TOLERANCE.items()):
        hidden_TD, classes_ND = random(targets, width, seed=1).to(dtype), random(items, width, seed=2).to(dtype)
        weights_T = random(targets, seed=3).abs().float() * (torch.arange(targets) % 3 != 1)
        lse_T, mean_TD = softmax_mean(hidden_TD, classes_ND, splits)
        grad_ND = torch.ones(items, width)
        add_class_gradient(hidden_TD, classes_ND, weights_T, lse_T, grad_ND, splits)
        expected = softmax_gradients(hidden_TD, classes_ND, weights_T)
        for found, wanted in zip((lse_T, mean_TD, grad_ND - 1), expected, strict=True):
            assert found.dtype == torch.float32
            largest = max(wanted.abs().max().item(), 1.0) if wanted.numel() else 1.0
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * largest)


def check_huge_logits(_: World) -> None:
    from pnfrec_dist.losses.gpu_kernels import add_class_gradient, softmax_mean

    hidden_TD = torch.tensor([[1e4], [-1e4], [0.0]]).repeat(1, 16)
    classes_ND = torch.tensor([[1.0], [-1.0]]).repeat(1, 16) / 16
    lse_T, mean_TD = softmax_mean(hidden_TD, classes_ND)
    grad_ND = torch.zeros_like(classes_ND)
    add_class_gradient(hidden_TD, classes_ND, torch.ones(3), lse_T, grad_ND)
    torch.testing.assert_close(lse_T, torch.tensor([1e4, 1e4, 0.6931472]))
    torch.testing.assert_close(mean_TD * 16, torch.tensor([[1.0], [-1.0], [0.0]]).repeat(1, 16))
    torch.testing.assert_close(grad_ND, torch.tensor([[1e4], [-1e4]]).repeat(1, 16))


@pytest.mark.parametrize("check", [check_sweeps, check_huge_logits])
def test_both_sweeps_equal_the_formula(interpreter: None, check: Callable[[World], None]) -> None:
    spawn(1, check)


def check_bounds(_: World) -> None:
    """Rows beyond the bounds cost nothing, and change nothing."""
    from pnfrec_dist.losses.gpu_kernels import add_class_gradient, softmax_mean

    hidden_TD, classes_ND = random(700, 24, seed=1).float(), random(270, 24, seed=2).float()
    for first, end, splits in ((0, 700, 1), (130, 131, 2), (300, 560, 3), (128, 384, 1), (50, 50, 2)):
        bounds = torch.tensor([first, end])
        weights_T = random(700, seed=3).abs().float()
        weights_T[:first] = weights_T[end:] = 0
        lse_T, mean_TD = softmax_mean(hidden_TD, classes_ND, splits, bounds)
        grad_ND = torch.zeros(270, 24)
        add_class_gradient(hidden_TD, classes_ND, weights_T, lse_T, grad_ND, splits, bounds)
        expected = softmax_gradients(hidden_TD, classes_ND, weights_T)
        assert lse_T.isfinite().all() and mean_TD.isfinite().all()
        for found, wanted in zip(
            (lse_T[first:end], mean_TD[first:end]), (e[first:end] for e in expected), strict=False
        ):
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-5)
        torch.testing.assert_close(grad_ND.double(), expected[2], rtol=0, atol=1e-3)
        far = [row for row in range(700) if row // 128 < first // 128 or row // 128 > max(end - 1, 0) // 128]
        assert not mean_TD[far].any(), "tiles of other rows are left out"


def test_rows_beyond_the_bounds_are_left_out(interpreter: None) -> None:
    spawn(1, check_bounds)


def losses(world: World, tiling: Tiling, width: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """(loss_T, gradient of hidden, gradient of all rows) with this rank's share of 12 targets over 200 items."""
    table = ItemTable(200, width, shards=world)
    with torch.no_grad():
        table.weight.copy_(2 * random(201, width, seed=1).float()[table.first_row : table.end_row])
    own = slice(0, 5) if world.rank == 0 and world.size > 1 else slice(5 if world.size > 1 else 0, 12)
    hidden_TD = random(12, width, seed=2).float()[own].requires_grad_()
    targets_T, weights_T = torch.arange(1, 13)[own] ** 2, torch.rand(12, generator=torch.Generator())[own]
    looked_up = table.lookup(torch.tensor([0, 3, 199])).sum() / world.size
    total, loss_T = cross_entropy(hidden_TD, table, targets_T, weights_T, tiling)
    (3 * total + looked_up).backward()
    assert table.weight.grad is not None and table.weight.grad.any(), "it is complete but for looked-up rows"
    table.collect_gradients()
    assert hidden_TD.grad is not None
    return loss_T, hidden_TD.grad, torch.cat(world.gather(table.weight.grad))


def check_losses(world: World) -> None:
    found = losses(world, FUSED)
    sizes = world.sizes(len(found[0]))
    whole = (world.gather_rows(found[0], sizes), world.gather_rows(found[1], sizes), found[2])
    for part, wanted in zip(whole, losses(World(), Tiling(5, 4, "two")), strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=5e-5)  # gradients are tripled


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loss_equals_that_of_tiles(interpreter: None, ranks: int) -> None:
    """A width that needs padding, and a table, replicated or sharded, whose row 0 is not a class."""
    spawn(ranks, check_losses)


@pytest.mark.parametrize(
    ("blocks", "longest", "splits"),
    [(132, 1_000, 1), (144, 1_000, 6), (33, 1_000, 4), (2_000, 8, 1), (50, 3, 1), (0, 0, 1)],
)
def test_splits_leave_no_processor_idle(blocks: int, longest: int, splits: int) -> None:
    """144 programs would take two rounds on 132 processors; 6 * 144 take seven, which are almost full."""
    assert fewest_splits(blocks, longest, at_once=132) == splits


SLOW = pytest.mark.slow


@pytest.mark.parametrize("capability", [pytest.param(80, marks=SLOW), 90])
@pytest.mark.parametrize("width", [64, pytest.param(128, marks=SLOW), pytest.param(240, marks=SLOW), 256])
def test_the_kernels_compile_for_a_gpu_within_its_shared_memory(capability: int, width: int) -> None:
    """A program may use 163 KiB on an A100, and 227 KiB on an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pnfrec_dist.losses import gpu_kernels

    own, passing, tile_w, launch = kernel_tile(width)
    for kernel, sizes in (
        (gpu_kernels._softmax_mean, {"tile_t": own, "tile_n": passing}),
        (gpu_kernels._add_class_gradient, {"tile_t": passing, "tile_n": own, "grad_width": width}),
    ):
        constants = {"width": width, "tile_w": tile_w, "has_bounds": True, **sizes}
        types = {"hidden_ptr": "*bf16", "classes_ptr": "*bf16", "bounds_ptr": "*i64"}
        types |= dict.fromkeys(constants, "constexpr")
        pointers = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
        signature = {name: {**pointers, **types}.get(name, "i32") for name in kernel.arg_names}
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options=launch)
        assert compiled.metadata.shared <= kernel_memory(width) <= {80: 163, 90: 227}[capability] * 1024
        assert ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"], "the tensor cores multiply"


def test_auto_takes_the_kernels_where_they_run() -> None:
    settings = Settings(encoder=EncoderSettings(hidden_size=64), train=TrainSettings(precision="bfloat16"))
    plain = Settings(encoder=EncoderSettings(hidden_size=64))
    wide = Settings(encoder=EncoderSettings(hidden_size=257), train=TrainSettings(precision="bfloat16"))
    assert plan_softmax(settings, 32_000, 10**6, on_gpu=True).sweep == "fused"
    assert plan_softmax(settings, 500, 3_000, on_gpu=True) == plan_tiles(500, 3_000, 2**28, "materialised")
    for other, on_gpu in ((settings, False), (plain, True), (wide, True)):
        assert plan_softmax(other, 32_000, 10**6, on_gpu=on_gpu).sweep == "two"


def test_fused_on_a_cpu_is_refused() -> None:
    settings = Settings(loss=LossSettings(exact_path="fused"), train=TrainSettings(precision="bfloat16"))
    with pytest.raises(InputError, match="'fused', which needs GPU workers; use auto"):
        plan_softmax(settings, 10, 10, on_gpu=False)


@NEEDS_GPU
@pytest.mark.parametrize(("targets", "items", "width"), [(300, 5_000, 64), (4_096, 100_000, 128), (1_000, 777, 231)])
def test_on_a_gpu_the_loss_equals_that_of_tiles(targets: int, items: int, width: int) -> None:
    found = []
    for tiling in (FUSED, Tiling(512, 4_096, "two")):
        table = ItemTable(items, width).cuda()
        with torch.no_grad():
            table.weight.copy_(random(items + 1, width, seed=1).float() / width**0.5)
        hidden_TD = random(targets, width, seed=2).float().cuda().requires_grad_()
        targets_T = torch.arange(targets, device="cuda") % items + 1
        total, loss_T = cross_entropy(hidden_TD, table, targets_T, torch.ones(targets).cuda(), tiling, torch.bfloat16)
        total.backward()
        table.collect_gradients()
        found.append((loss_T, hidden_TD.grad, table.weight.grad))
    for fused, tiled in zip(*found, strict=True):
        torch.testing.assert_close(fused, tiled, rtol=1e-2, atol=1e-2 * tiled.abs().max().item())
