"""The exact cross-entropy from settings: its tiles, their memory, and advice to save memory."""

import pytest

from pnfrec_dist.config.settings import LossSettings, Settings, TrainSettings
from pnfrec_dist.losses.catalog_loss import StepExtent
from pnfrec_dist.losses.exact import EXACT, plan_softmax
from pnfrec_dist.losses.tiling import Tiling


def test_a_tile_is_as_large_as_the_settings_say_or_the_device_likes() -> None:
    def logits(tile_mib: float, *, on_gpu: bool) -> int:
        tiling = plan_softmax(Settings(loss=LossSettings(tile_mib=tile_mib)), 10**6, 10**5, on_gpu=on_gpu)
        return tiling.rows * tiling.items

    mib = 2**20 // 4
    assert 0.9 * 4 * mib <= logits(4, on_gpu=True) <= 4 * mib
    assert 0.9 * 256 * mib <= logits(0, on_gpu=True) <= 256 * mib
    assert 0.9 * 16 * mib <= logits(0, on_gpu=False) <= 16 * mib
    assert logits(0.5, on_gpu=False) <= mib / 2


def test_materialised_logits_are_all_there_at_once() -> None:
    settings = Settings(loss=LossSettings(exact_path="materialised", tile_mib=1))
    extent = StepExtent(targets=1000, rows=501, num_items=1001, shards=2, on_gpu=False)
    assert plan_softmax(settings, 2000, 501, on_gpu=False) == Tiling(2000, 501, "one")
    assert EXACT.bytes(extent, settings) == 4 * 2000 * 501


def test_narrow_logits_are_half_as_large_on_a_cpu_and_copied_on_a_gpu() -> None:
    loss, train = LossSettings(exact_path="chunked"), TrainSettings(precision="bfloat16")
    narrow, wide = Settings(loss=loss, train=train), Settings(loss=loss)
    cases = ((narrow, False, 2, 8), (wide, False, 4, 0), (narrow, True, 8, 10), (wide, True, 4, 0))
    for settings, on_gpu, per_logit, per_weight in cases:
        extent = StepExtent(targets=10**5, rows=10**5, num_items=10**5, shards=1, on_gpu=on_gpu)
        tiling = plan_softmax(settings, 10**5, 10**5, on_gpu=on_gpu)
        of_classes = per_weight * settings.encoder.hidden_size * tiling.items
        assert EXACT.bytes(extent, settings) == per_logit * tiling.rows * tiling.items + of_classes
    assert plan_softmax(narrow, 10**5, 10**5, on_gpu=False).rows == 83
    assert plan_softmax(wide, 10**5, 10**5, on_gpu=False).rows == 41


@pytest.mark.parametrize(
    ("loss", "flags"),
    [
        (LossSettings(), set()),
        (LossSettings(tile_mib=64), {"a smaller --loss.tile-mib"}),
        (LossSettings(exact_path="chunked"), {"--loss.exact-path auto or --loss.cross-entropy sampled_softmax"}),
    ],
)
def test_what_would_save_memory_is_what_the_settings_ask_for(loss: LossSettings, flags: set[str]) -> None:
    assert {flag for flag, share in EXACT.ways_to_save(Settings(loss=loss)).items() if share} == flags
