"""The code of docs/extending.md, in a module outside the package, as a reader would put it there."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import called, started

from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.config.histories import HISTORIES
from pnfrec_dist.config.mappings import override
from pnfrec_dist.config.settings import (
    EncoderSettings,
    EvaluationSettings,
    LossSettings,
    SampledSettings,
    Settings,
    TrainSettings,
)
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluate import main as evaluate_command
from pnfrec_dist.experiments.plots import learning_curves
from pnfrec_dist.experiments.training_plan import checked_plan
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.loaded_model import Model
from pnfrec_dist.training.checkpoint_manager import checkpoints
from pnfrec_dist.training.events import BestTested, EpochDone, Event
from pnfrec_dist.training.initial_model import build_model
from pnfrec_dist.training.loop import Hooks, TrainLoop
from pnfrec_dist.training.memory_plan import plan_step

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
MISTAKEN = """
import torch
from additions import MeanBlock, NormTerm
from pnfrec_dist.model.block import Block

class Named(NormTerm):
    def __init__(self, given): self.given = given
    def name(self, encoder): return self.given() if callable(self.given) else self.given

class OfTotal(NormTerm):
    def __init__(self, given): self.given = given
    def total(self, tensors, settings): return self.given

class Sizeless(Block):
    def forward(self, x_PD, groups): return x_PD

class Countless(MeanBlock):
    @staticmethod
    def size(settings, length): return 1000

class NotStatic(MeanBlock):
    def size(self, settings, length): return 1000

TWIN, SLASH, AGAIN, NAMELESS = Named("ce_positive"), Named("norm/2"), Named("norm"), Named(lambda: 1 / 0)
VECTOR, NUMBER = OfTotal(torch.ones(3)), OfTotal(1.0)

def no_k(target_rank): return target_rank
def scalar(target_rank, k): return 1.0
def hr(target_rank, k): return target_rank <= k
"""
"""Own code that is wrong, each in its way."""
FLAGS = ["--epochs", "2", "--train.batch-size", "8", "--encoder.hidden-size", "8", "--encoder.max-length", "4"]


@pytest.fixture(scope="module", autouse=True)
def additions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of additions.py, on the path of this process."""
    directory = tmp_path_factory.mktemp("own")
    code = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    (directory / "additions.py").write_text("\n".join(code))
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))
    HISTORIES.pop("negative", None)  # type: ignore[arg-type]
    for name in ("additions", "mistaken"):
        sys.modules.pop(name, None)


def settings(**changed: object) -> Settings:
    encoder = EncoderSettings(hidden_size=8, num_blocks=2, max_length=4)
    base = {"dataset": "tiny", "epochs": 2, "encoder": encoder, "train": TrainSettings(batch_size=8)}
    return Settings(**(base | changed))  # type: ignore[arg-type]


def run(wanted: Settings, prepared: Path, run_dir: Path, stop_after: int = 0) -> list[Event]:
    """The events of a training with one worker; stop_after: steps after which it is stopped, 0: never."""
    events: list[Event] = []
    steps = iter(range(1, 10**6))
    hooks = Hooks(events.append, lambda: bool(stop_after) and next(steps) >= stop_after)
    TrainLoop(wanted, open_prepared(prepared), run_dir, World(), hooks).run()
    return events


def epochs(events: list[Event]) -> list[dict[str, float]]:
    found = [event.metrics for event in events if isinstance(event, EpochDone)]
    return [{name: value for name, value in metrics.items() if "users_per_s" not in name} for metrics in found]


def test_a_term_is_trained_logged_plotted_and_gone_on_with(prepared: Path, tmp_path: Path) -> None:
    wanted = settings(loss=LossSettings(0.45, 0.25, terms=("additions:NORM=0.01",)))
    events = run(wanted, prepared, tmp_path / "whole")
    logged = epochs(events)
    terms = {"ce_positive": 1.0, "ce_negative": 0.45, "contrastive": 0.25, "norm": 0.01}
    for metrics in logged:
        assert metrics["train/norm"] > 0
        parts = sum(weight * metrics[f"train/{name}"] for name, weight in terms.items())
        assert metrics["train/loss"] == pytest.approx(parts, rel=1e-6)
    run(wanted, prepared, tmp_path / "stopped", stop_after=2)
    assert checkpoints(tmp_path / "stopped")
    assert epochs(run(wanted, prepared, tmp_path / "stopped"))[-1] == logged[-1]
    titles = [axes.get_title(loc="left") for axes in learning_curves({"own": [_done(events)]}).axes]
    assert titles[:5] == ["loss", "CE over likes", "CE over dislikes", "contrastive term", "norm"]


def _done(events: list[Event]) -> list[EpochDone]:
    return [event for event in events if isinstance(event, EpochDone)]


def test_a_term_s_gradient_reaches_the_encoder(prepared: Path, tmp_path: Path) -> None:
    plain, heavy = (
        epochs(run(settings(loss=LossSettings(terms=terms)), prepared, tmp_path / name))[-1]
        for name, terms in (("none", ("additions:NORM=1e-9",)), ("heavy", ("additions:NORM=5.0",)))
    )
    assert heavy["train/norm"] < plain["train/norm"]


def test_a_loss_over_sampled_items_is_trained(prepared: Path, tmp_path: Path) -> None:
    loss = LossSettings(0.45, 0.0, cross_entropy="additions:BPR_LOSS")
    wanted = settings(loss=loss, sampled=SampledSettings(num_items=6), epochs=8)
    first, *_, last = epochs(run(wanted, prepared, tmp_path / "run"))
    assert 0 < last["train/ce_positive"] < first["train/ce_positive"] < 1


def test_a_block_is_built_planned_initialised_and_trained(prepared: Path, tmp_path: Path) -> None:
    wanted = settings(encoder=EncoderSettings(hidden_size=8, num_blocks=2, max_length=4, block="additions:MeanBlock"))
    data = open_prepared(prepared)
    model = build_model(data.num_items, wanted)
    blocks: list[Any] = [part for part in model.modules() if type(part).__name__ == "MeanBlock"]
    assert len(blocks) == 2 and all(torch.equal(block.mix.weight, torch.eye(8)) for block in blocks)
    x_PD = torch.randn(6, 8)
    mixed_PD = blocks[0](x_PD, ((2, 3),))
    later = x_PD.clone()
    later[2] += 1.0  # the first user's last token
    assert torch.equal(blocks[0](later, ((2, 3),))[[0, 1, 3, 4, 5]], mixed_PD[[0, 1, 3, 4, 5]])
    plan = plan_step(wanted, data.train(), data.num_items, 1)
    parameters = sum(p.numel() for p in model.encoders.parameters())
    assert plan.encoders == pytest.approx(4 * 4 * parameters, rel=0.1)
    tested = [event for event in run(wanted, prepared, tmp_path / "run") if isinstance(event, BestTested)]
    assert tested[0].metrics["ndcg_p_at_10"] > 0


def test_a_metric_is_computed(prepared: Path, tmp_path: Path) -> None:
    measures = (*EvaluationSettings.measures, "additions:first")
    wanted = settings(evaluation=EvaluationSettings(measures=measures))
    events = run(wanted, prepared, tmp_path / "run")
    assert "val/first_p_at_10" in epochs(events)[0]
    (tested,) = [event for event in events if isinstance(event, BestTested)]
    assert tested.metrics["first_p_at_10"] == tested.metrics["first_p_at_5"] <= tested.metrics["hr_p_at_5"]
    assert tested.floors["popularity"].keys() >= {"first_delta_at_10"}
    flags = ["--run", str(checkpoints(tmp_path / "run")[0]), "--data-dir", str(prepared.parent)]
    assert "FIRST_p@10" in called(evaluate_command, tmp_path, *flags)


def test_a_history_is_trained_evaluated_and_listed(prepared: Path, tmp_path: Path) -> None:
    """A history of dislikes: lists are made from the column that training reads."""
    importlib.import_module("additions")
    encoder = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, history="negative")  # type: ignore[arg-type]
    wanted, data = settings(encoder=encoder), open_prepared(prepared)
    read = pq.read_table(prepared / "train", columns=["negative_items"])["negative_items"].to_pylist()
    assert [data.train(wanted.encoder.history).history.row(n).tolist() for n in range(len(read))] == read
    events = run(wanted, prepared, tmp_path / "run")
    (tested,) = [event for event in events if isinstance(event, BestTested)]
    model = Model(of_checkpoint(Path(tested.checkpoint), wanted, data))
    one, other, third = model.item_ids[:3]
    lists = [model.recommend(liked=[liked], disliked=[third], k=99) for liked in (one, other)]
    scores = [dict(zip(found.items, found.scores, strict=True)) for found in lists]
    assert all(scores[0][item] == scores[1][item] for item in model.item_ids[3:]), "likes are not read"
    assert model.recommend(liked=[one]).is_popular


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": {"terms": ["additions:NormTerm=1"]}}, "it must be an object of DirectTerm"),
        ({"loss": {"terms": ["additions:BPR_LOSS=1"]}}, "it must be an object of DirectTerm"),
        ({"loss": {"terms": ["additions:GONE=1"]}}, "which cannot be imported"),
        ({"loss": {"terms": ["broken:NORM=1"]}}, "which cannot be imported .SyntaxError: .*broken.py, line 1"),
        ({"loss": {"terms": ["mistaken:TWIN=1"]}}, "more than one value is named 'ce_positive' in the log"),
        ({"loss": {"terms": ["mistaken:SLASH=1"]}}, "a value is named 'norm/2' in the log; use only letters"),
        ({"loss": {"terms": ["additions:NORM=1", "mistaken:AGAIN=1"]}}, "more than one value is named 'norm'"),
        ({"loss": {"terms": ["mistaken:NAMELESS=1"]}}, "cannot be named .*ZeroDivisionError.*mistaken.py line"),
        ({"loss": {"cross_entropy": "nowhere:LOSS"}}, "which cannot be imported"),
        ({"loss": {"cross_entropy": "additions:NORM"}}, "it must be an object of CatalogLoss"),
        ({"loss": {"cross_entropy": "additions:BPR"}}, "it must be an object of CatalogLoss"),
        ({"encoder": {"block": "additions:NORM"}}, "it must be a class of Block"),
        ({"encoder": {"block": "additions:NormTerm"}}, "it must be a class of Block"),
        ({"encoder": {"block": "mistaken:Sizeless"}}, "it must be a class of Block with the method size"),
        ({"encoder": {"block": "mistaken:Countless"}}, "it must be a class of Block whose size is a BlockSize"),
        ({"encoder": {"block": "mistaken:NotStatic"}}, "which cannot tell its size .TypeError.*missing 1"),
        ({"encoder": {"history": "additions:NORM"}}, "it must be one of 'positive', 'all', 'signed'"),
        ({"evaluation": {"measures": ["ndcg", "nowhere:first"]}}, "which cannot be imported"),
        (
            {"evaluation": {"measures": ["ndcg", "additions:second"]}},
            "which cannot be imported .*no attribute 'second'",
        ),
        ({"evaluation": {"measures": ["ndcg", "additions:NORM"]}}, "it must be a function of target ranks and k"),
        ({"evaluation": {"measures": ["ndcg", "mistaken:no_k"]}}, "which fails on target ranks .TypeError"),
        ({"evaluation": {"measures": ["ndcg", "mistaken:scalar"]}}, "must be a function that returns an array"),
        ({"evaluation": {"measures": ["ndcg", "hr", "mistaken:hr"]}}, "more than one value is named 'hr' in the log"),
    ],
    ids=str,
)
def test_what_is_not_of_the_kind_is_said_before_training(
    prepared: Path, additions: Path, changed: dict[str, object], said: str
) -> None:
    (additions / "mistaken.py").write_text(MISTAKEN)
    (additions / "broken.py").write_text("NORM = (1")
    with pytest.raises(InputError, match=said) as error:
        checked_plan(override(settings(), changed, "the flags"), open_prepared(prepared), WorkerPlan(1, False, 1.0))
    assert "\n" not in str(error.value)


def test_a_total_of_another_shape_is_said(prepared: Path, additions: Path, tmp_path: Path) -> None:
    (additions / "mistaken.py").write_text(MISTAKEN)
    for term in ("VECTOR", "NUMBER"):
        wanted = settings(loss=LossSettings(terms=(f"mistaken:{term}=1",)))
        with pytest.raises(InputError, match=rf"^loss\.terms is 'mistaken:{term}'.*a term whose total is a 0-d tensor"):
            run(wanted, prepared, tmp_path / term)


def test_a_history_of_dislikes_and_alpha_are_logged_apart(prepared: Path, tmp_path: Path) -> None:
    importlib.import_module("additions")
    encoder = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, history="negative")  # type: ignore[arg-type]
    events = run(settings(encoder=encoder, loss=LossSettings(0.5)), prepared, tmp_path / "run")
    titles = [axes.get_title(loc="left") for axes in learning_curves({"own": [_done(events)]}).axes]
    assert titles[:3] == ["loss", "CE over dislikes (main encoder)", "CE over dislikes"]
    for metrics in epochs(events):
        assert 0 < metrics["train/ce_main"] != metrics["train/ce_negative"] > 0
        parts = metrics["train/ce_main"] + 0.5 * metrics["train/ce_negative"]
        assert metrics["train/loss"] == pytest.approx(parts, rel=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_command_trains_all_of_it(prepared: Path, additions: Path, workers: str) -> None:
    """Two workers run on Ray and import additions.py from the directory where the command was started."""
    flags = ["--dataset", "tiny", "--data-dir", str(prepared.parent), "--num-workers", workers, *FLAGS]
    flags += ["--model", "pnfrec", "--encoder.block", "additions:MeanBlock", "--loss.terms", "additions:NORM=0.01"]
    flags += ["--loss.cross-entropy", "additions:BPR_LOSS", "--sampled.num-items", "6"]
    done = started(additions, "pnfrec_dist.train", *flags, "--evaluation.measures", "hr", "ndcg", "additions:first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^pnfrec +\d\.\d{4}", done.stdout, re.M)
