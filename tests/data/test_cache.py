import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pnfrec_dist.data.cache import CHECKSUMS, mapped
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError

ARRAYS = {
    "likes": Ragged(np.array([0, 2, 2, 5]), np.array([1, 2, 3, 4, 5], dtype=np.int32)),
    "dislikes": Ragged(np.array([0, 0, 0, 0]), np.empty(0, dtype=np.int32)),
}


def make() -> dict[str, Ragged]:
    return ARRAYS


def never() -> dict[str, Ragged]:
    raise AssertionError("made again")


def require_same(found: dict[str, Ragged]) -> None:
    assert found.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        assert np.array_equal(found[name].offsets, expected.offsets)
        assert np.array_equal(found[name].values, expected.values)
        assert found[name].values.dtype == np.int32


def test_arrays_are_written_once_and_mapped(tmp_path: Path) -> None:
    require_same(mapped(tmp_path / "cache/a-1", make))
    again = mapped(tmp_path / "cache/a-1", never)
    require_same(again)
    assert isinstance(again["likes"].values, np.memmap)
    (directory,) = (tmp_path / "cache").iterdir()
    assert directory.name == "a-1" and directory.stat().st_mode & 0o777 == 0o700, "others do not read it"


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to the cache .*; name another directory in PNFREC_CACHE"):
        mapped(tmp_path / "file" / "a", make)


def test_what_nobody_used_for_a_month_goes(tmp_path: Path) -> None:
    for name in ("old", "used"):
        mapped(tmp_path / name, make)
    (tmp_path / ".draft-left").mkdir()
    (tmp_path / "not ours").mkdir()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    require_same(mapped(tmp_path / "used", never))
    mapped(tmp_path / "new", make)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "not ours", "used"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no checksums"])
def test_damaged_arrays_are_made_again(tmp_path: Path, damage: str) -> None:
    mapped(tmp_path / "a", make)
    file = tmp_path / "a" / ("likes.values.npy" if damage != "no checksums" else CHECKSUMS)
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 4
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        file.unlink()
    require_same(mapped(tmp_path / "a", make))
    require_same(mapped(tmp_path / "a", never))


def test_many_that_come_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: mapped(tmp_path / "a", make), range(16)):
            require_same(found)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
