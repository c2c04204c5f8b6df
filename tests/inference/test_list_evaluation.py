"""Another system's lists: metrics beside a plain loop, what is left out, wrong files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluate import main

ITEMS = 12


def random_lists(data: PreparedData, seed: int, length: int = 20) -> dict[str, list[str]]:
    """With unknown users and items, seen items, and items that stand twice."""
    rng = np.random.default_rng(seed)
    users = [*data.user_ids("test").to_pylist()[:-1], "nobody"]
    return {user: [str(item) for item in rng.integers(1, ITEMS + 4, length)] for user in users}


def write(path: Path, lists: dict[str, list[str]]) -> Path:
    """Rows in random order; ranks with gaps."""
    rows = [(user, 3 * rank + 5, item) for user, items in lists.items() for rank, item in enumerate(items)]
    order = np.random.default_rng(0).permutation(len(rows))
    user, rank, item = zip(*(rows[place] for place in order), strict=True)
    pq.write_table(pa.table({"user_id": user, "rank": rank, "raw_item_id": item, "score": [0.5] * len(rows)}), path)
    return path


def plain_hits(data: PreparedData, lists: dict[str, list[str]], k: int) -> tuple[float, float]:
    """(HR_p@k, HR_n@k): a list without seen, unknown and repeated items has the target in its first k."""
    test, found = data.holdout("test"), {True: [], False: []}
    for row, user in enumerate(data.user_ids("test").to_pylist()):
        target = str(test.target_item[row])
        seen = {str(item) for item in test.seen.row(row)} - {target}
        left = [item for item in dict.fromkeys(lists.get(user, [])) if int(item) <= ITEMS and item not in seen]
        found[bool(test.target_is_positive[row])].append(target in left[:k])
    return float(np.mean(found[True])), float(np.mean(found[False]))


def evaluated(prepared: Path, lists: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, dict], str, str]:
    out = lists.parent / "figures.json"
    data_dir = str(prepared.parent)
    flags = ["--lists", str(lists), "--dataset", "tiny", "--data-dir", data_dir, "--out", str(out)]
    assert main(flags) == 0
    shown = capsys.readouterr()
    return json.loads(out.read_text()), shown.out, shown.err


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_a_plain_loop(
    prepared: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_prepared(prepared)
    lists = random_lists(data, seed)
    found, table, notes = evaluated(prepared, write(tmp_path / "lists.parquet", lists), capsys)
    for k in (5, 10, 20):
        hits = (found["lists"][f"hr_p_at_{k}"], found["lists"][f"hr_n_at_{k}"])
        assert hits == pytest.approx(plain_hits(data, lists, k))
    assert found.keys() == {"lists", "popularity", "popularity_positive"}
    assert "lists minus it, NDCG_p@10" in table and "popularity_positive" in table
    assert "1 of 10 test users have no list" in notes
    assert "left out: 20 rows of users who are no test users" in notes
    assert "items that are not in the catalog" in notes and "items that stand twice" in notes


def test_a_directory_of_files_is_one_set_of_lists(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_prepared(prepared)
    lists = random_lists(data, 1)
    whole, *_ = evaluated(prepared, write(tmp_path / "lists.parquet", lists), capsys)
    (tmp_path / "parts").mkdir()
    for number in range(2):
        half = {user: items for place, (user, items) in enumerate(lists.items()) if place % 2 == number}
        write(tmp_path / "parts" / f"{number}.parquet", half)
    assert evaluated(prepared, tmp_path / "parts", capsys)[0] == whole


def test_lists_of_whole_histories_are_warned_of(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_prepared(prepared)
    targets = data.holdout("test").target_item
    users = data.user_ids("test").to_pylist()
    without = {
        user: [str(item) for item in range(1, ITEMS + 1) if item != target]
        for user, target in zip(users, targets, strict=True)
    }
    assert "WARNING: no list holds its user's target" in evaluated(prepared, write(tmp_path / "l", without), capsys)[2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["u"], "raw_item_id": ["1"]}, "has no column 'rank'; lists need user_id, rank, raw_item_id"),
        ({"user_id": ["u"], "rank": ["first"], "raw_item_id": ["1"]}, "is string; it must be a number"),
        ({"user_id": ["u"], "rank": [1], "raw_item_id": ["1"]}, "no row of"),
        ({"user_id": [], "rank": pa.array([], pa.int64()), "raw_item_id": []}, "the first has no row at all"),
    ],
)
def test_wrong_files_are_one_line(prepared: Path, tmp_path: Path, columns: dict[str, list], message: str) -> None:
    file = tmp_path / "lists.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(InputError, match=message):
        main(["--lists", str(file), "--dataset", "tiny", "--data-dir", str(prepared.parent)])


def test_lists_need_a_file_and_a_data_set(prepared: Path, tmp_path: Path) -> None:
    for path, flags, message in (
        (tmp_path / "none.parquet", ["--dataset", "tiny"], "none.parquet"),
        (tmp_path, ["--dataset", "tiny"], "holds no \\*.parquet file"),
        (tmp_path, [], "--lists needs --dataset"),
    ):
        with pytest.raises(InputError, match=message):
            main(["--lists", str(path), *flags, "--data-dir", str(prepared.parent)])
