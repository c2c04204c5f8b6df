"""The command's errors, its plan and its cards; what it writes is tested in integration/test_recommend.py."""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist import index, recommend
from pnfrec_dist.config.settings import EvaluationSettings, LossSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluate import main as evaluate_command
from pnfrec_dist.inference import batch_job
from pnfrec_dist.inference.item_filters import read_ids


@pytest.fixture
def checkpoint(prepared: Path, tmp_path: Path) -> Path:
    return trained(open_prepared(prepared), SETTINGS, tmp_path / "run")


def line(checkpoint: Path, prepared: Path, *more: str) -> Sequence[str]:
    return ["--run", str(checkpoint), "--data-dir", str(prepared.parent), *more]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "recs"], "--run is missing"),
        (["--run", "x"], "--out is missing"),
        (["--run", "x", "--show"], "--show takes user ids and writes nothing"),
        (["--run", "x", "--show", "7", "--out", "recs"], "--show takes user ids and writes nothing"),
        (["--run", "runs/none", "--out", "recs"], "there is no directory 'runs/none'"),
        (["--run", "x", "--out", "recs", "--top-k", "0"], "--top-k is 0; it must be >= 1"),
        (["--run", "x", "--out", "recs", "--gamma", "-1"], "--gamma is -1.0; it must be a finite number >= 0"),
        (["--run", "x", "--out", "s3://bucket/recs"], "--out is 's3://bucket/recs'; it must be a path"),
        (["--run", "x", "--out", "recs", "--topk", "5"], "did you mean --top-k"),
    ],
)
def test_wrong_flags_are_said_before_anything_is_opened(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        recommend.main(flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--users", "u001\nu999\nx\n", r"--users: .*tiny lacks 2 \(u999, x\) of 3 users; remove them"),
        ("--users", "\n", r"--users .* is empty; give one raw id per line"),
        ("--allow", "99\n100\n", r"--allow .* has no item that the model knows"),
        ("--deny", None, r"--deny .* cannot be read \(No such file"),
        ("--deny-pairs", "a,b\n", r"--deny-pairs .* is not a Parquet file"),
    ],
)
def test_wrong_files_are_named(
    checkpoint: Path, prepared: Path, tmp_path: Path, flag: str, content: str | None, message: str
) -> None:
    file = tmp_path / "ids.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "recs"), flag, str(file)))
    assert not (tmp_path / "recs").exists()


def test_a_byte_order_mark_is_no_part_of_an_id(
    checkpoint: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deny.txt").write_bytes(b"\xef\xbb\xbf3\r\n4\r\n")
    recommend.main(
        line(
            checkpoint, prepared, "--show", "u004", "--top-k", "12", "--keep-seen", "--deny", str(tmp_path / "deny.txt")
        )
    )
    text = capsys.readouterr().out
    assert "warning" not in text
    listed = text.partition("list from the whole history")[2].partition("list from before")[0].split()
    assert sorted(listed[2::3], key=int) == [str(item) for item in range(1, 13) if item not in (3, 4)]


def test_lists_from_an_index_that_finds_everything_are_the_exact_lists(
    checkpoint: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, flags = str(tmp_path / "index"), ("--num-workers", "1", "--top-k", "5")
    index.main(line(checkpoint, prepared, "--out", where, "--recall", "1"))
    assert "recall@100 1.000" in capsys.readouterr().out
    recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "exact"), *flags))
    recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "found"), *flags, "--index", where))
    exact, found = (
        pa.concat_tables(map(pq.read_table, sorted((tmp_path / name).glob("*.parquet")))) for name in ("exact", "found")
    )
    assert found.drop(["score"]).equals(exact.drop(["score"])) and len(found)
    manifest = json.loads((tmp_path / "found" / "_manifest.json").read_text())
    assert manifest["index"] and "index" not in json.loads((tmp_path / "exact" / "_manifest.json").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "x"], "--run is missing"),
        (["--run", "x"], "--out is missing"),
        (["--run", "x", "--out", "y", "--recall", "0"], "--recall is 0.0; it must be in (0, 1]"),
        (["--run", "runs/none", "--out", "y"], "there is no directory 'runs/none'"),
    ],
)
def test_wrong_flags_of_the_index_are_said(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        index.main(flags)
    assert message in str(error.value)


def test_an_index_that_is_none_is_said(checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="build an index with: pnfrec index"):
        recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "recs"), "--index", str(tmp_path)))
    assert not (tmp_path / "recs").exists()


def test_pairs_need_their_columns(checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u001"], "item": ["1"]}), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="has no text column 'raw_item_id'"):
        recommend.main(line(checkpoint, prepared, "--out", "recs", "--deny-pairs", str(tmp_path / "pairs.parquet")))


def test_gamma_without_a_negative_encoder_is_refused(prepared: Path, tmp_path: Path) -> None:
    alone = trained(open_prepared(prepared), replace(SETTINGS, loss=LossSettings(0.0, 0.0)), tmp_path / "run")
    with pytest.raises(InputError, match=r"gamma is 0\.5, but the model does not predict dislikes"):
        recommend.main(line(alone, prepared, "--out", str(tmp_path / "recs"), "--gamma", "0.5"))


def test_a_card_is_printed(checkpoint: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main(line(checkpoint, prepared, "--show", "u004", "without likes", "--top-k", "3")) == 0
    text = capsys.readouterr().out
    first, second = text.split("\n\n")
    assert first.startswith("user u004\n") and "list from the whole history" in first
    assert second.startswith("user without likes\n") and "liked last     nothing" in second
    assert "list of popular items, as no like is known" in second
    with pytest.raises(InputError, match="has no user 'nobody'"):
        recommend.main(line(checkpoint, prepared, "--show", "nobody"))


def test_a_signed_model_ranks_for_dislikes_alone_and_with_gamma(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, encoder=replace(SETTINGS.encoder, history="signed"))
    run, out = trained(open_prepared(prepared), settings, tmp_path / "run"), tmp_path / "gamma.json"
    evaluate_command(line(run, prepared, "--gammas", "0.5", "--out", str(out)))
    assert list(json.loads(out.read_text())["validation"]) == ["0.0", "0.5"]
    assert "note:" not in capsys.readouterr().err
    cards = []
    for gamma in ("0", "0.5"):
        capsys.readouterr()
        recommend.main(line(run, prepared, "--show", "without likes", "--gamma", gamma))
        cards.append(capsys.readouterr().out)
        assert "disliked last  3; 1" in cards[-1] and "list from the whole history" in cards[-1]
    assert cards[0] != cards[1]


def test_gamma_is_picked_on_validation_and_tested_once(
    checkpoint: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gamma.json"
    assert evaluate_command(line(checkpoint, prepared, "--gammas", "0.5", "2", "--few", "4", "--out", str(out))) == 0
    found = json.loads(out.read_text())
    assert list(found["validation"]) == ["0.0", "0.5", "2.0"]
    best = max(found["validation"].values())
    assert found["validation"][str(found["best_gamma"])] == best
    above = max(("0.5", "2.0"), key=lambda gamma: found["validation"][gamma])
    assert set(found["test"]) == {"0.0", above}
    said = capsys.readouterr()
    assert "validation, many points of each user (16)" in said.out, "whatever the training's evaluation.select_on"
    assert "test, all (10 users)" in said.out and "at most 4 likes" in said.out
    assert re.search(r"WARNING: \d+ of 10 test users have seen all but 10 items or fewer", said.err)


def test_where_figures_cannot_be_written_it_is_said_at_once(
    checkpoint: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path, tmp_path / "none" / "gamma.json"):
        with pytest.raises(InputError, match="cannot write --out"):
            evaluate_command(line(checkpoint, prepared, "--out", str(out)))
    assert not capsys.readouterr().out and not list(tmp_path.parent.glob(".*.writing"))


def test_evaluating_as_trained_gives_the_run_s_test_metrics(checkpoint: Path, prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "gamma.json"
    evaluate_command(line(checkpoint, prepared, "--gammas", "0", "--out", str(out)))
    wanted = json.loads((tmp_path / "run" / "result" / "result.json").read_text())["test"]
    written = json.loads(out.read_text())
    found = written["test"]["0.0"]["all"] | written["test_points"]["0.0"]
    assert any(name.startswith("points_ndcg_p") for name in found)
    assert found == pytest.approx({name: value for name, value in wanted.items() if "coverage" not in name})


def test_cutoffs_and_measures_are_those_of_the_training(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = EvaluationSettings(cutoffs=(10, 7), measures=("ndcg", "mrr"))
    of_training = trained(open_prepared(prepared), replace(SETTINGS, evaluation=evaluation), tmp_path / "run")
    evaluate_command(line(of_training, prepared, "--gammas", "0", "--out", str(tmp_path / "gamma.json")))
    tested = json.loads((tmp_path / "gamma.json").read_text())["test"]["0.0"]
    for metrics in tested.values():
        assert {name.rpartition("_")[2] for name in metrics} == {"7", "10"}
        assert {name.partition("_")[0] for name in metrics} == {"ndcg", "mrr"}
    printed = capsys.readouterr().out
    assert "NDCG_p@10" in printed and "HR" not in printed, "no column is empty"


def test_an_id_in_a_list_may_hold_any_character_but_a_line_feed(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes("a\x85b\r\nc\u2028d\n\n e \n".encode())
    assert read_ids(str(file), "--users").to_pylist() == ["a\x85b", "c\u2028d", "e"]


def test_parts_that_are_made_at_the_same_time_are_the_same(
    checkpoint: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: two parts are read before the first one is written."""
    recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "one"), "--num-workers", "1"))
    both, read = threading.Barrier(2, timeout=60), batch_job.read_users
    monkeypatch.setattr(batch_job, "PARTS_AT_ONCE", {"cpu": 2})
    monkeypatch.setattr(batch_job, "read_users", lambda *args: (both.wait(), read(*args))[1])
    recommend.main(line(checkpoint, prepared, "--out", str(tmp_path / "two"), "--num-workers", "1"))
    one, two = (json.loads((tmp_path / out / "_manifest.json").read_text())["files"] for out in ("one", "two"))
    assert len(one) == 2 and one == two
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "two"))
