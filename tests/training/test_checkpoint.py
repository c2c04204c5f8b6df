import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import spawn

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.training.checkpoint import commit, load_model, load_optimizer, own_tensors, read_state, write_part

ITEMS = "items-00000-of-00001.safetensors"
FILES = ("model.safetensors", "optimizer.safetensors", ITEMS, "state.json", "checksums.json", "COMMITTED")
NUM_ITEMS = 10


def fresh(shards: World | None = None, seed: int = 0) -> tuple[PNFRec, torch.optim.Adam]:
    encoder = EncoderSettings(hidden_size=4, num_blocks=1, max_length=3)
    model = PNFRec(NUM_ITEMS, encoder, torch.Generator().manual_seed(seed), with_negative=True, shards=shards)
    return model, torch.optim.Adam(model.parameters())


def trained() -> tuple[PNFRec, torch.optim.Adam]:
    model, optimizer = fresh()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def save_checkpoint(
    directory: Path, model: PNFRec, optimizer: torch.optim.Adam, state: dict[str, Any], world: World
) -> None:
    """Saves as Saver does, without a thread."""
    draft = directory.with_name(f".{directory.name}.writing")
    state = {"item_rows": model.item_table.bounds, **state}
    write_part(draft, world.rank, own_tensors(model, optimizer, world), state if world.is_main else None)
    world.barrier()
    if world.is_main:
        commit(draft, directory, world.size)
    world.barrier()


def save(directory: Path, state: dict[str, Any] | None = None) -> tuple[PNFRec, torch.optim.Adam]:
    model, optimizer = trained()
    save_checkpoint(directory, model, optimizer, state or {}, World())
    return model, optimizer


def require_equal(
    first: tuple[PNFRec, torch.optim.Adam], second: tuple[PNFRec, torch.optim.Adam], rows: slice = slice(None)
) -> None:
    """Bitwise equal. rows: the rows of the first model's item table that the second one holds."""
    for (name, a), b in zip(first[0].named_parameters(), second[0].parameters(), strict=True):
        part = rows if name == "item_table.weight" else slice(None)
        assert torch.equal(a[part], b)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(first[1].state[a][key][part], second[1].state[b][key])
        assert torch.equal(first[1].state[a]["step"], second[1].state[b]["step"])


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = save(tmp_path / "c", {"epoch": 3})
    assert read_state(tmp_path / "c")["epoch"] == 3
    other = fresh(seed=9)
    load_model(tmp_path / "c", other[0])
    load_optimizer(tmp_path / "c", *other)
    require_equal(saved, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_the_optimizer_s_state_is_where_the_parameters_are(tmp_path: Path) -> None:
    """Fused Adam needs the step counters on the GPU, too. The meta device replaces a GPU here."""
    save(tmp_path / "c")
    model, _ = fresh(seed=9)
    optimizer = torch.optim.Adam(model.to("meta").parameters())
    load_optimizer(tmp_path / "c", model, optimizer)
    devices = {value.device.type for state in optimizer.state.values() for value in state.values()}
    assert len(optimizer.state) == len(list(model.parameters())) and devices == {"meta"}


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", *fresh(), {}, World())
    other = fresh(seed=9)
    load_model(tmp_path / "c", other[0])
    load_optimizer(tmp_path / "c", *other)
    assert not other[1].state


def pass_on(world: World, source: str, target: str) -> None:
    """One rank of a sharded run: opens `source`, checks its rows, writes `target`."""
    mine = fresh(world, seed=9)
    load_model(Path(source), mine[0])
    load_optimizer(Path(source), *mine)
    table = mine[0].item_table
    require_equal(trained(), mine, slice(table.first_row, table.end_row))
    save_checkpoint(Path(target), *mine, {}, world)


def test_any_number_of_ranks_opens_what_any_other_wrote(tmp_path: Path) -> None:
    """1 -> 2 -> 3 -> 2 -> 1 ranks share 11 rows."""
    before = save(tmp_path / "0")
    for number, size in enumerate((2, 3, 2)):
        spawn(size, pass_on, str(tmp_path / f"{number}"), str(tmp_path / f"{number + 1}"))
        rows = read_state(tmp_path / f"{number + 1}")["item_rows"]
        assert len(rows) == size + 1 and len(list((tmp_path / f"{number + 1}").glob("items-*"))) == size
    after = fresh(seed=9)
    load_model(tmp_path / "3", after[0])
    load_optimizer(tmp_path / "3", *after)
    require_equal(before, after)


def test_another_catalog_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c")
    encoder = EncoderSettings(hidden_size=4, num_blocks=1, max_length=3)
    other = PNFRec(12, encoder, torch.Generator(), with_negative=True)
    with pytest.raises(InputError, match="has 10 items, the data set 12"):
        load_model(tmp_path / "c", other)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_refused_by_file_name(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path / "c")
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


def test_a_whole_checkpoint_of_the_step_stays_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    save(tmp_path / "c", {"epoch": 1})
    save(tmp_path / "c", {"epoch": 2})
    assert read_state(tmp_path / "c")["epoch"] == 1
    (tmp_path / "c" / ITEMS).write_bytes(b"")
    save(tmp_path / "c", {"epoch": 3})
    assert read_state(tmp_path / "c")["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "c", {"format_version": 9})
    assert json.loads((tmp_path / "c/state.json").read_text())["format_version"] == 9
    with pytest.raises(InputError, match="has format 9"):
        read_state(tmp_path / "c")


def test_no_checkpoint_is_said() -> None:
    with pytest.raises(InputError, match="there is no checkpoint nowhere"):
        read_state(Path("nowhere"))
