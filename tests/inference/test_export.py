"""Exported files: the same scores as the model with torch alone; complete, replaced or refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny_training import SETTINGS, trained
from torch import Tensor

from pnfrec_dist import export
from pnfrec_dist.config.settings import EncoderSettings, EvaluationSettings, LossSettings, Settings
from pnfrec_dist.data.batches import HistoryBatch
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.inference import export as export_files
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.run_directory import Run

ITEMS = 30
SIZES = EncoderSettings(hidden_size=8, num_blocks=2, num_heads=2, max_length=7, dropout=0.5)
POSITIVE = replace(SETTINGS, encoder=SIZES)
CASES = {
    "two encoders": POSITIVE,
    "signed": replace(POSITIVE, encoder=replace(SIZES, history="signed")),
    "likes beside signed": replace(
        POSITIVE, encoder=replace(SIZES, history="both"), loss=LossSettings(0.45, terms=("ce_likes=1",))
    ),
    "one position": replace(POSITIVE, encoder=replace(SIZES, max_length=1)),
    "two positions": replace(POSITIVE, encoder=replace(SIZES, max_length=2)),
}
SCORES = """
import json, sys
import numpy as np, torch
inputs, *names = sys.argv[1:]
items_ND = np.load("items.npy")
scores = []
for name in names:
    encoder = torch.export.load(name).module()
    vectors = [encoder(torch.tensor(items_BL)) for items_BL in json.loads(inputs)]
    scores.append([(vectors_BD.detach().numpy() @ items_ND.T).tolist() for vectors_BD in vectors])
assert not any(module.startswith("pnfrec_dist") for module in sys.modules)
print(json.dumps(scores))
"""


def made(settings: Settings) -> Exported:
    """A model with large weights, so that every wrong computation shows."""
    model, generator = build_model(ITEMS, settings).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
        model.item_table.weight[0] = 0.0
    return Exported(settings, model, [f"raw {item}" for item in range(ITEMS)], np.arange(ITEMS + 1), 4.0, "digest")


def histories(longest: int, has_signs: bool) -> list[list[list[int]]]:
    """Batches of several sizes and lengths, users without an item among them. has_signs: some items are disliked."""
    rng = np.random.default_rng(5)
    batches = [[[3]], [[*range(1, longest + 1)]], [[4] * length for length in range((longest + 1) // 2, -1, -1)]]
    many = [rng.integers(1, ITEMS + 1, length % (longest + 1)).tolist() for length in range(longest, longest + 17)]
    signs = np.array([1, -1]) if has_signs else np.array([1])
    return [[(rng.choice(signs, len(user)) * user).tolist() for user in batch] for batch in [*batches, many]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of made(POSITIVE)."""
    directory = tmp_path_factory.mktemp("written") / "out"
    export_files.export(made(POSITIVE), directory)
    return directory


FAST = "two encoders"
BESIDE = "likes beside signed"
OTHERS = [
    pytest.param(case, marks=pytest.mark.integration if case == BESIDE else pytest.mark.slow)
    for case in CASES
    if case != FAST
]


@pytest.mark.parametrize("case", [FAST, *OTHERS])
def test_scores_equal_the_models_where_torch_is_all_there_is(case: str, tmp_path: Path) -> None:
    exported = made(CASES[case])
    model = exported.model
    export_files.export(exported, tmp_path / "out")
    batches = histories(model.max_length, has_signs=model.encoders.main.reads_signs)
    padded = [[user + [0] * (max(map(len, batch)) - len(user)) for user in batch] for batch in batches]
    own: dict[str, Callable[[HistoryBatch], Tensor]] = {"encoder.pt2": model.last_hidden}
    if model.encoders.predicts_dislikes:
        own["negative_encoder.pt2"] = model.last_negative_hidden
    line = [sys.executable, "-c", SCORES, json.dumps(padded), *own]
    found = json.loads(subprocess.run(line, check=True, capture_output=True, cwd=tmp_path / "out").stdout)
    for hidden, of_encoder in zip(own.values(), found, strict=True):
        for batch, scores_BN in zip(batches, of_encoder, strict=True):
            users = Ragged(np.cumsum([0] + [len(u) for u in batch]), np.array([i for u in batch for i in u], dtype=int))
            inputs = history_batch(users, np.arange(len(batch)), model.max_length, torch.device("cpu"))
            with torch.no_grad():
                expected_BN = hidden(inputs) @ model.item_table.weight[1:].T
            np.testing.assert_allclose(scores_BN, expected_BN, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "negative_encoder.pt2").exists() == ("negative_encoder.pt2" in own)


@pytest.mark.parametrize("case", [FAST, pytest.param("signed", marks=pytest.mark.integration)])
def test_the_printed_code_scores_with_gamma(case: str, tmp_path: Path) -> None:
    settings = replace(CASES[case], evaluation=EvaluationSettings(gamma=0.2))
    exported, found = made(settings), {}
    text = export_files.export(exported, tmp_path / "out")
    exec(text[text.index("import numpy") :], found)
    model, device = exported.model, torch.device("cpu")
    disliked = [1, 2, 3] if case == "signed" else [ITEMS, ITEMS - 1, ITEMS - 2]

    def batch(items: list[int]) -> HistoryBatch:
        return history_batch(Ragged.of([items]), np.arange(1), model.max_length, device)

    with torch.no_grad():
        negative_BD = model.last_negative_hidden(batch(disliked))
        user_BD = model.last_hidden(batch([1, 2, 3])) - 0.2 * negative_BD
        expected_BN = user_BD @ model.item_table.weight[1:].T
    np.testing.assert_allclose(found["scores_BN"], expected_BN, rtol=0, atol=1e-5)


def test_item_vectors_are_the_tables_rows(written: Path) -> None:
    exported = made(POSITIVE)
    vectors_ND = np.load(written / "items.npy")
    assert (
        vectors_ND.dtype == np.float32 and (vectors_ND == exported.model.item_table.weight[1:].detach().numpy()).all()
    )
    table = pq.read_table(written / "items.parquet")
    assert table["item_id"].to_pylist() == [*range(1, ITEMS + 1)]
    assert table["raw_item_id"].to_pylist() == exported.raw_ids
    vector = table.schema.field("vector").type
    assert (vector.value_type, vector.list_size) == (pa.float32(), 8)
    assert (np.array(table["vector"].to_pylist(), dtype=np.float32) == vectors_ND).all()


def test_more_positions_than_the_model_has_are_refused(written: Path) -> None:
    encoder = torch.export.load(written / "encoder.pt2").module()
    with pytest.raises((AssertionError, RuntimeError), match="7"):
        encoder(torch.ones(1, 8, dtype=torch.int64))


def test_the_command_replaces_an_earlier_export_whole(
    written: Path, tmp_path: Path, prepared_writer: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = open_prepared(prepared_writer(tmp_path / "prepared" / "tiny"))
    run = Run(tmp_path / "run", {}, data.manifest.digest)
    run.write()
    trained(data, SETTINGS, run.directory)
    out = tmp_path / "deep" / "out"
    shutil.copytree(written, out)
    assert export.main(["--run", str(run.directory), "--out", str(out), "--data-dir", str(tmp_path / "prepared")]) == 0
    assert not [path for path in out.parent.iterdir() if path != out], "no drafts are left"
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["dataset"], manifest["num_items"], manifest["data_digest"]) == ("tiny", 12, data.manifest.digest)
    sums = {path.name: sha256_of(path) for path in out.iterdir() if path.name != "manifest.json"}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == sums
    shown = capsys.readouterr().out
    assert all(name in shown for name in sums)
    snippet = shown[shown.index("import numpy") :] + "\nprint(scores_BN.shape)"
    said = subprocess.run([sys.executable, "-c", snippet], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout == "(1, 12)\n"


def test_a_directory_of_something_else_is_left_alone(written: Path, tmp_path: Path) -> None:
    exported, mine = made(POSITIVE), tmp_path / "mine"
    shutil.copytree(written, mine)
    (mine / "index.faiss").write_text("mine")
    with pytest.raises(InputError, match=r"index\.faiss is not part of the earlier export"):
        export_files.export(exported, mine)
    (mine / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is no earlier export; name a new directory"):
        export_files.export(exported, mine)
    assert (mine / "index.faiss").read_text() == "mine"
    with pytest.raises(InputError, match="is no earlier export"):
        export_files.export(exported, mine / "index.faiss")


def test_files_that_score_otherwise_are_not_published(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, out = made(POSITIVE), tmp_path / "out"
    shutil.copytree(written, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    save = np.save
    monkeypatch.setattr(np, "save", lambda file, vectors_ND: save(file, vectors_ND + 1e-3))
    with pytest.raises(RunError, match="scores differ from the model's by"):
        export_files.export(exported, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: --run, --out; see python -m pnfrec_dist.export --help"),
        (["--run", "r", "--out", "o", "--onnx"], "unrecognized arguments: --onnx; see"),
        (["--run", "runs/none", "--out", "o"], "there is no directory 'runs/none'"),
    ],
)
def test_wrong_flags_are_told_in_one_line(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.main(args)
