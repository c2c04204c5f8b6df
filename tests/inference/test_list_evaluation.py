"""Another system's lists: metrics beside a plain loop, many points, what is left out, wrong files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist import load_model
from pnfrec_dist.config.histories import History
from pnfrec_dist.config.settings import EvaluationSettings, LossSettings
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
    test = data.holdout("test")
    seen = sum(test.target_item[row] in test.seen.row(row) for row in range(len(test)))
    assert seen and f"{seen} targets are items that the user has seen before" in notes


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


def test_files_with_and_without_points_are_read_together(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In either order of names, and with the floats that pandas makes of points with empty values."""
    data = open_prepared(prepared)
    users = data.user_ids("test").to_pylist()
    last = {user: [str(item) for item in range(1, ITEMS + 1)] for user in users}
    points = {(user, place): items[::-1] for user, items in last.items() for place in (0, 1)}
    write_point_lists(tmp_path / "whole", {**{(user, None): items for user, items in last.items()}, **points})
    whole, *_ = evaluated(prepared, tmp_path / "whole", capsys)
    table = pq.read_table(tmp_path / "whole")
    for names in (("a", "b"), ("b", "a")):
        parts = tmp_path / names[0]
        parts.mkdir()
        pq.write_table(table.filter(table["point"].is_null()).drop_columns("point"), parts / f"{names[0]}.parquet")
        pq.write_table(table.filter(table["point"].is_valid()), parts / f"{names[1]}.parquet")
        assert evaluated(prepared, parts, capsys)[0] == whole
    place = table.schema.get_field_index("point")
    pq.write_table(table.set_column(place, "point", table["point"].cast(pa.float64())), tmp_path / "floats")
    assert evaluated(prepared, tmp_path / "floats", capsys)[0] == whole


def test_equal_ranks_are_counted_and_ordered_by_item(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_prepared(prepared)
    items = [*range(1, ITEMS + 1)]
    for name, ranks in (("equal", [1] * ITEMS), ("by_item", items)):
        rows = [
            (user, rank, str(item))
            for user in data.user_ids("test").to_pylist()
            for rank, item in zip(ranks, items, strict=True)
        ]
        user, rank, item = zip(*rows[::-1], strict=True)
        pq.write_table(pa.table({"user_id": user, "rank": rank, "raw_item_id": item}), tmp_path / name)
    found, _, notes = evaluated(prepared, tmp_path / "equal", capsys)
    plain, _, silent = evaluated(prepared, tmp_path / "by_item", capsys)
    assert found == plain
    test = data.holdout("test")
    seen = sum(len({*test.seen.row(row)} - {test.target_item[row]}) for row in range(len(test)))
    assert f"{ITEMS * 10 - seen - 10} rows have the rank of another item" in notes and "rank of another" not in silent


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
    assert "WARNING: no list holds its target" in evaluated(prepared, write(tmp_path / "l", without), capsys)[2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["u"], "raw_item_id": ["1"]}, "has no column 'rank'; lists need user_id, rank, raw_item_id"),
        ({"user_id": ["u"], "rank": ["first"], "raw_item_id": ["1"]}, "is string; it must be a number"),
        ({"user_id": ["u"], "rank": [1], "raw_item_id": ["1"]}, "no row of"),
        (
            {"user_id": [], "rank": pa.array([], pa.int64()), "raw_item_id": []},
            "holds no row; a list has one row for each",
        ),
        ({"user_id": ["u"], "rank": [1], "raw_item_id": [["1", "2"]]}, "write one row for each item of a list"),
        ({"user_id": ["u"] * 2, "rank": [1.0, float("nan")], "raw_item_id": ["1", "2"]}, "1 row without a rank"),
        ({"user_id": ["u"] * 2, "rank": [1, None], "raw_item_id": ["1", "2"]}, "1 row without a rank"),
        (
            {"user_id": ["u"] * 2, "rank": [-1, -2], "raw_item_id": ["1", "2"]},
            "column 'rank' of .* has -2; ranks are 1",
        ),
        ({"user_id": ["u"], "rank": [1], "raw_item_id": ["1"], "point": [-5]}, "has -5; points count from 0"),
        ({"user_id": ["u"], "rank": [1], "raw_item_id": ["1"], "point": ["0"]}, "whole numbers.*it is string"),
    ],
)
def test_wrong_files_are_one_line(prepared: Path, tmp_path: Path, columns: dict[str, list], message: str) -> None:
    file = tmp_path / "lists.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(InputError, match=message):
        main(["--lists", str(file), "--dataset", "tiny", "--data-dir", str(prepared.parent)])


def written_points(prepared: Path, split: str, *more: str) -> list[dict]:
    file = prepared.parent / f"{split}.parquet"
    flags = ["--dataset", "tiny", "--data-dir", str(prepared.parent), "--split", split, *more]
    assert main(["--write-points", str(file), *flags]) == 0
    return pq.read_table(file).to_pylist()


def plain_points(data: PreparedData, split: str) -> dict[tuple[str, int | None], dict]:
    """Both holdout interactions of each user of the tiny data set, and the last one again as such (None)."""
    lists = data.holdout_interactions(split)
    assert lists is not None
    found: dict[tuple[str, int | None], dict] = {}
    for row, user in enumerate(data.user_ids(split).to_pylist()):
        rows = list(zip(lists.before_items.row(row), lists.before_is_positive.row(row), strict=True))
        for place, target in enumerate(zip(lists.items.row(row), lists.is_positive.row(row), strict=True)):
            found[user, place] = {
                "raw_item_ids": [str(item) for item, _ in rows],
                "is_liked": [bool(is_positive) for _, is_positive in rows],
                "liked_raw_item_ids": [str(item) for item, is_positive in rows if is_positive],
                "seen_raw_item_ids": [str(item) for item in sorted({item for item, _ in rows})],
                "target_raw_item_id": str(target[0]),
                "target_is_liked": bool(target[1]),
            }
            rows.append(target)
        found[user, None] = dict(found[user, 1])
    return found


@pytest.mark.parametrize("split", ["test", "validation"])
def test_written_points_hold_what_came_before_and_targets_of_validation_alone(prepared: Path, split: str) -> None:
    expected = plain_points(open_prepared(prepared), split)
    for row in written_points(prepared, split):
        wanted = expected.pop((row.pop("user_id"), row.pop("point")))
        targets = {name: wanted.pop(name) for name in ("target_raw_item_id", "target_is_liked")}
        assert row == wanted | (targets if split == "validation" else {})
    assert not expected


def write_point_lists(file: Path, lists: dict[tuple[str, int | None], list[str]]) -> Path:
    rows = [(user, place, rank, item) for (user, place), items in lists.items() for rank, item in enumerate(items)]
    columns = dict(zip(("user_id", "point", "rank", "raw_item_id"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("split", ["test", "validation"])
def test_lists_by_popularity_equal_the_popularity_ranking(
    prepared: Path, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the last interactions and on many points."""
    by_popularity = [str(item) for item in range(ITEMS, 0, -1)]
    points = written_points(prepared, split)
    lists = {
        (row["user_id"], row["point"]): [item for item in by_popularity if item not in row["seen_raw_item_ids"]]
        for row in points
    }
    data, hits = open_prepared(prepared), {False: [], True: []}
    for (user, place), row in plain_points(data, split).items():
        target = row["target_raw_item_id"]
        if target in row["seen_raw_item_ids"]:  # a seen target stays a candidate
            lists[user, place] = [i for i in by_popularity if i == target or i not in row["seen_raw_item_ids"]]
        if place is not None:
            hits[row["target_is_liked"]].append(target in lists[user, place][:5])
    file, out = write_point_lists(prepared.parent / "l", lists), prepared.parent / "out.json"
    flags = ["--dataset", "tiny", "--data-dir", str(prepared.parent), "--split", split, "--out", str(out)]
    assert main(["--lists", str(file), *flags]) == 0
    found = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert f"{split}, many points of each user ({len(points) * 2 // 3})" in shown
    assert f"{split}, last interactions ({len(points) // 3})" in shown
    names = [name for name in found["popularity"] if "coverage" not in name]
    assert {name: found["lists"][name] for name in names} == {name: found["popularity"][name] for name in names}
    assert found["lists"]["points_hr_p_at_5"] == pytest.approx(np.mean(hits[True]))
    assert found["lists"].keys() >= {"ndcg_p_at_10", "points_ndcg_p_at_10", "points_ndcg_n_at_10"}


@pytest.mark.parametrize("history", ["positive", "both"])
def test_a_models_own_lists_equal_the_model(
    prepared_writer: Callable[..., Path], tmp_path: Path, history: History
) -> None:
    """The lists are made from the written points alone; the model is evaluated by --run, with its stored weights."""
    prepared = prepared_writer(tmp_path / "prepared" / "tiny", items=300)
    settings = replace(
        SETTINGS,
        encoder=replace(SETTINGS.encoder, history=history, likes_share=0.3 if history == "both" else "auto"),
        loss=LossSettings(0.45, terms=("ce_likes=1",) if history == "both" else ()),
        evaluation=EvaluationSettings(gamma=0.2, points=1, cutoffs=(10, 200)),
    )
    data = open_prepared(prepared)
    assert not any(row["target_raw_item_id"] in row["seen_raw_item_ids"] for row in plain_points(data, "test").values())
    checkpoint = trained(data, settings, tmp_path / "run")
    model = load_model(checkpoint, str(prepared.parent))
    lists = {}
    for row in written_points(prepared, "test"):
        pairs = list(zip(row["raw_item_ids"], row["is_liked"], strict=True))
        signed = [(item, 5.0 if is_liked else 1.0) for item, is_liked in pairs]
        found = model.recommend(users={"a": signed}, k=300)
        lists[row["user_id"], row["point"]] = list(found["a"].items)
    file, out = write_point_lists(tmp_path / "lists.parquet", lists), tmp_path / "out.json"
    flags = ["--data-dir", str(prepared.parent), "--run", str(checkpoint), "--out", str(out)]
    assert main(["--lists", str(file), *flags]) == 0
    found = json.loads(out.read_text())
    names = [name for name in found["lists"] if "coverage" not in name]
    assert {name: found["lists"][name] for name in names} == {name: found[settings.model][name] for name in names}
    assert any(name.startswith("points_") for name in names) and found["lists"]["points_mrr_p_at_200"] > 0


def test_points_that_are_not_evaluated_and_points_without_a_list_are_told(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user = open_prepared(prepared).user_ids("test")[0].as_py()
    file = write_point_lists(prepared.parent / "l", {(user, 0): ["1", "2"], (user, 7): ["1", "2", "3"]})
    assert main(["--lists", str(file), "--dataset", "tiny", "--data-dir", str(prepared.parent)]) == 0
    shown = capsys.readouterr()
    assert "left out: 3 rows of points that are not evaluated" in shown.err
    assert "19 of 20 test points have no list" in shown.err
    assert "last interactions" not in shown.out


def test_the_number_of_points_is_that_of_the_flag(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {n: written_points(prepared, "test", "--points", str(n)) for n in (1, 2)}
    places = {n: [(row["user_id"], row["point"]) for row in rows[n] if row["point"] is not None] for n in rows}
    assert len(places[1]) == 10 and len(places[2]) == 20
    file = write_point_lists(prepared.parent / "l", {place: ["1", "2"] for place in places[2]})
    assert main(["--lists", str(file), "--dataset", "tiny", "--data-dir", str(prepared.parent), "--points", "1"]) == 0
    shown = capsys.readouterr()
    assert "test, many points of each user (10)" in shown.out
    assert "left out: 20 rows of points that are not evaluated; --write-points and --lists need the same" in shown.err
    assert "no list is for a last interaction" in shown.err


def test_points_are_whole_numbers(prepared: Path) -> None:
    file = prepared.parent / "lists.parquet"
    pq.write_table(pa.table({"user_id": ["u"], "rank": [1], "raw_item_id": ["1"], "point": [0.5]}), file)
    with pytest.raises(InputError, match=r"the column 'point' of .* must be whole numbers, as in --write-points; "):
        main(["--lists", str(file), "--dataset", "tiny", "--data-dir", str(prepared.parent)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--write-points", "a", "--lists", "b"], "--lists is 'b'; it must be given without --write-points"),
        (["--write-points", "a", "--split", "train"], "--split"),
        (
            ["--run", "a", "--split", "validation"],
            "--split is 'validation'; it must be given with --lists or --write-points",
        ),
        (["--run", "a", "--dataset", "tiny"], "--dataset is 'tiny'; it must be given with --lists or --write-points"),
        (["--lists", "a", "--few", "3"], "--few is 3; it must be given without --lists and --write-points"),
        (["--run", "a", "--points", "3"], "--points is 3; it must be given with --lists or --write-points"),
        (["--write-points", "a", "--points", "0"], "--points is 0; it must be auto, or >= 1"),
        ([], "name the model, such as runs/<run>, or give --lists or --write-points"),
        (["--write-points", "a"], "--write-points needs --dataset"),
        (["--write-points", "/nowhere/a", "--dataset", "tiny"], "cannot write --write-points /nowhere/a"),
    ],
)
def test_wrong_flags_of_points_are_one_line(prepared: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main([*flags, "--data-dir", str(prepared.parent)])


def test_lists_need_a_file_and_a_data_set(prepared: Path, tmp_path: Path) -> None:
    for path, flags, message in (
        (tmp_path / "none.parquet", ["--dataset", "tiny"], "none.parquet does not exist; name a Parquet file"),
        (tmp_path, ["--dataset", "tiny"], "holds no \\*.parquet file"),
        (tmp_path, [], "--lists needs --dataset"),
    ):
        with pytest.raises(InputError, match=message):
            main(["--lists", str(path), *flags, "--data-dir", str(prepared.parent)])
