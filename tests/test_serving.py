"""The exported model beside the model itself: the same lists, from raw ids."""

import dataclasses
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch

from pnfrec_dist.config import EncoderSettings, History, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.batch import history_batch
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.distributed import World
from pnfrec_dist.events import Event
from pnfrec_dist.serving import save_model
from pnfrec_dist.training.checkpoint import load_model
from pnfrec_dist.training.loop import Hooks, TrainLoop, build_model

SETTINGS = Settings(
    epochs=1,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=3),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
)


@pytest.mark.parametrize("history", ["positive", "all"])
def test_the_exported_model_lists_what_the_trained_one_does(prepared: Path, tmp_path: Path, history: History) -> None:
    """Users of known and unknown items, of more than fit the window, of none; each list beside a plain ranking."""
    alpha = 0.45 if history == "positive" else 0.0
    encoder = dataclasses.replace(SETTINGS.encoder, history=history)
    settings = dataclasses.replace(SETTINGS, encoder=encoder, loss=LossSettings(alpha, 0.25))
    data, events = open_prepared(prepared), list[Event]()
    TrainLoop(settings, data, tmp_path / "run", World(), Hooks(events.append, lambda: False)).run()
    checkpoint = Path(next(e for e in events if e["kind"] == "test")["checkpoint"])
    save_model(tmp_path / "model", checkpoint, settings, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "prepared", "run"], "no drafts are left"

    users = [["1", "2", "3", "4", "5", "6", "7", "8"], ["9", "what", "3"], [], [str(item) for item in range(1, 13)]]
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    answers = served.predict([{"liked": liked, "top_k": 5} for liked in users])

    model = build_model(data.num_items, settings).eval()
    load_model(checkpoint, model)
    for liked, answer in zip(users, answers, strict=True):
        known = [int(raw) for raw in liked if raw.isdigit()]
        batch = history_batch(
            Ragged(np.array([0, len(known)]), np.array(known, dtype=np.int64)),
            np.array([0]),
            model.max_length,
            torch.device("cpu"),
        )
        with torch.no_grad():
            scores = (model.last_hidden(batch) @ model.item_table.weight.T)[0].tolist()
        expected = sorted((i for i in range(1, 13) if i not in known), key=lambda item: (-scores[item], item))[:5]
        assert answer.items == [str(item) for item in expected]
        assert answer.scores == pytest.approx([scores[item] for item in expected], abs=1e-6)
        assert answer.unknown == [raw for raw in liked if not raw.isdigit()]


def test_an_interrupted_export_leaves_the_old_model(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, events = open_prepared(prepared), list[Event]()
    TrainLoop(SETTINGS, data, tmp_path / "run", World(), Hooks(events.append, lambda: False)).run()
    checkpoint = Path(next(e for e in events if e["kind"] == "test")["checkpoint"])
    save_model(tmp_path / "model", checkpoint, SETTINGS, data)
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow.pyfunc, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "model", checkpoint, SETTINGS, data)
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".model*"))


@pytest.mark.parametrize(
    "query", [{"liked": ["1"], "top_k": 0}, {"liked": "1"}, {"top_k": 3}, {"liked": ["1"], "top_k": "many"}]
)
def test_a_query_that_is_none_is_refused(prepared: Path, tmp_path: Path, query: dict[str, object]) -> None:
    data, events = open_prepared(prepared), list[Event]()
    TrainLoop(SETTINGS, data, tmp_path / "run", World(), Hooks(events.append, lambda: False)).run()
    checkpoint = Path(next(e for e in events if e["kind"] == "test")["checkpoint"])
    save_model(tmp_path / "model", checkpoint, SETTINGS, data)
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    with pytest.raises(mlflow.MlflowException):
        served.predict([query])
