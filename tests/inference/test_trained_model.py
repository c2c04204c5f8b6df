"""Opens models by a directory (run, checkpoint, model); errors for others. For MLflow see integration/."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import write_json
from pnfrec_dist.inference.artifact import Exported, of_checkpoint
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.model.precision import with_precision
from pnfrec_dist.model.score_weights import ScoreWeights
from pnfrec_dist.training.run_directory import Run


@pytest.fixture
def data(prepared: Path) -> PreparedData:
    return open_prepared(prepared)


@pytest.fixture
def run_dir(tmp_path: Path, data: PreparedData) -> Path:
    """The directory of a finished training without an exported model."""
    run = Run(tmp_path / "runs" / "r", {}, data.manifest.digest)
    run.write()
    trained(data, SETTINGS, run.directory)
    return run.directory


def same(one: Exported, other: Exported) -> bool:
    weights = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return (
        all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)
        and one.model.encoders.weights == other.model.encoders.weights
        and (one.raw_ids, one.threshold, one.data_digest) == (other.raw_ids, other.threshold, other.data_digest)
        and (one.num_positive_V == other.num_positive_V).all()
    )


def test_a_run_its_checkpoint_and_its_model_are_the_same(run_dir: Path, data: PreparedData, tmp_path: Path) -> None:
    (checkpoint,) = (run_dir / "checkpoints").glob("step-*")
    of_run = open_trained(str(run_dir), str(tmp_path / "prepared"))
    assert of_run.settings == with_precision(SETTINGS, "float32") and not of_run.model.training
    assert of_run.raw_ids == [str(item) for item in range(1, 13)] and of_run.num_positive_V.tolist() == [*range(13)]
    assert (of_run.threshold, of_run.data_digest) == (4.0, data.manifest.digest)
    assert same(of_run, open_trained(str(checkpoint), str(tmp_path / "prepared")))
    save_model(run_dir / "model", of_checkpoint(checkpoint, SETTINGS, data))
    for reference in (run_dir, run_dir / "model"):
        assert same(of_run, open_trained(str(reference), "nowhere")), "an exported model needs no prepared data"


def test_the_chosen_weights_of_scores_go_where_the_model_goes(data: PreparedData, tmp_path: Path) -> None:
    """From the checkpoint into a model, and into lists; files of before have those of the settings."""
    encoder, loss = replace(SETTINGS.encoder, history="both"), replace(SETTINGS.loss, terms=("ce_likes=1",))
    settings = replace(SETTINGS, encoder=replace(encoder, likes_share=0.4), loss=loss)
    run = Run(tmp_path / "runs" / "r", {}, data.manifest.digest)
    run.write()
    checkpoint = trained(data, settings, run.directory)
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["score_weights"] == {"likes_share": 0.4, "gamma": 0.0}
    chosen = ScoreWeights(0.2, 0.35)
    write_json(checkpoint / "state.json", {**state, "score_weights": asdict(chosen)})
    of_run = of_checkpoint(checkpoint, settings, data)
    assert of_run.model.encoders.weights == chosen and (of_run.gamma(None), of_run.gamma(0.1)) == (0.35, 0.1)
    save_model(tmp_path / "model", of_run)
    assert same(of_run, open_trained(str(tmp_path / "model"), "nowhere"))

    without = {name: value for name, value in state.items() if name != "score_weights"}
    write_json(checkpoint / "state.json", without)
    assert of_checkpoint(checkpoint, settings, data).model.encoders.weights == ScoreWeights(0.4, 0.0)


def test_a_run_without_a_model_gives_its_best_checkpoint(run_dir: Path, data: PreparedData, tmp_path: Path) -> None:
    (best,) = (run_dir / "checkpoints").glob("step-*")
    later = best.with_name("step-000000999")
    shutil.copytree(best, later)
    (later / "model.safetensors").write_bytes(b"damaged")
    found = open_trained(str(run_dir), str(tmp_path / "prepared"))
    assert same(found, open_trained(str(best), str(tmp_path / "prepared")))


def test_a_checkpoint_of_another_build_is_refused(
    run_dir: Path, tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    prepared_writer(tmp_path / "other" / "tiny", seed=1)
    with pytest.raises(InputError, match=r"another build of 'tiny'.*--data-dir"):
        open_trained(str(run_dir), str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"no prepared data set at .*nowhere/tiny"):
        open_trained(str(run_dir), str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "is empty; give a run's directory"),
        ("runs/none", "no directory 'runs/none'; give a run's"),
        (".", "neither"),
    ],
)
def test_what_is_no_model_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_trained(reference, "data/prepared")


def test_a_run_that_has_nothing_yet_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", {}, "digest")
    run.write()
    with pytest.raises(InputError, match="no model and no complete checkpoint; name another run"):
        open_trained(str(run.directory), "data/prepared")


@pytest.mark.parametrize("name", ["encoders.safetensors", "item_table.safetensors", "items.parquet", "model.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_model_is_refused(name: str, damage: str, tmp_path: Path, saved_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    file = model / "artifacts" / "exported" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes({"flipped": bytes(content), "cut": bytes(content[:40]), "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    with pytest.raises(InputError, match=name):
        open_trained(str(model), "data/prepared")


@pytest.mark.parametrize("content", [[], {"settings": {}}, {"settings": {"epoch": 1}}])
def test_a_description_of_another_kind_is_refused(content: object, tmp_path: Path, saved_model: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    file = model / "artifacts" / "exported" / "model.json"
    if isinstance(content, dict) and content["settings"]:
        content = json.loads(file.read_text()) | content
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"model\.json"):
        open_trained(str(model), "data/prepared")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    data = open_prepared(prepared_writer(directory / "prepared" / "tiny"))
    checkpoint = trained(data, SETTINGS, directory / "run")
    save_model(directory / "model", of_checkpoint(checkpoint, SETTINGS, data))
    return directory / "model"
