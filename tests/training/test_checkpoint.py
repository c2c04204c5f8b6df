import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from pnfrec_dist.errors import InputError
from pnfrec_dist.training.checkpoint import load_model, load_optimizer, read_state, save_checkpoint

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "checksums.json", "COMMITTED")


def trained() -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "c", model, optimizer, {"epoch": 3})
    assert read_state(tmp_path / "c")["epoch"] == 3
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other_optimizer = torch.optim.Adam(other.parameters())
    load_model(tmp_path / "c", other)
    load_optimizer(tmp_path / "c", other, other_optimizer)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[a][key], other_optimizer.state[b][key])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused_by_file_name(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path / "c", *trained(), {})
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "c")
    assert str(tmp_path / "c") in str(caught.value)


def test_a_save_that_dies_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "c", model, optimizer, {"epoch": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "c", model, optimizer, {"epoch": 2})
    assert read_state(tmp_path / "c")["epoch"] == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", *trained(), {"format_version": 9})
    assert json.loads((tmp_path / "c/state.json").read_text())["format_version"] == 9
    with pytest.raises(InputError, match="has format 9"):
        read_state(tmp_path / "c")


def test_no_checkpoint_is_said() -> None:
    with pytest.raises(InputError, match="no checkpoint at nowhere"):
        read_state(Path("nowhere"))
