"""Which precision auto means."""

import pytest
import torch

from pnfrec_dist.config.settings import EncoderSettings, Settings, TrainSettings
from pnfrec_dist.model import precision
from pnfrec_dist.model.precision import AMX_SIZE, AMX_WIDTH, fastest_precision, with_precision


@pytest.mark.parametrize(
    ("has_amx", "width", "users", "wanted"),
    [
        (True, AMX_WIDTH, 500, "bfloat16"),
        (True, AMX_WIDTH - 1, 500, "float32"),
        (True, 64, AMX_SIZE // 64 + 1, "bfloat16"),
        (True, 64, AMX_SIZE // 64 - 1, "float32"),
        (False, 256, 500, "float32"),
    ],
)
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, has_amx: bool, width: int, users: int, wanted: str) -> None:
    monkeypatch.setattr(precision, "has_amx", lambda: has_amx)
    settings = Settings(encoder=EncoderSettings(hidden_size=width), train=TrainSettings(batch_size=users))
    assert fastest_precision(settings, on_gpu=False) == wanted


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_named_precision_stays(named: precision.Precision, on_gpu: bool) -> None:
    settings = with_precision(Settings(), named)
    assert settings.train == TrainSettings(precision=named)
    assert fastest_precision(settings, on_gpu=on_gpu) == named


def test_auto_on_a_gpu_that_this_machine_lacks_is_bfloat16() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert fastest_precision(Settings(), on_gpu=True) == "bfloat16"
