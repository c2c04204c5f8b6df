import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.conf_files import conf_names
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from tune.options import base_settings, parse, planned_stages
from tune.records import Record, best_of, ranked, trial_name
from tune.search import DistinctPoints, listed_points, scheduler
from tune.space import Parameter, Stage, load_stage, require_space, with_point

HEAD = "model: sasrec_p\n"


def stage_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> Stage:
    """conf/tune/own.yaml with this content, loaded and checked."""
    (tmp_path / "conf/tune").mkdir(parents=True)
    (tmp_path / "conf/tune/own.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    stage = load_stage("own")
    require_space(stage, Settings())
    return stage


@pytest.mark.parametrize("name", conf_names("tune"))
def test_every_stage_of_the_project_can_be_planned(name: str) -> None:
    (stage,) = planned_stages(parse(["--stages", name, "--dataset", "ml1m"]))
    settings = base_settings(parse(["--stages", name, "--dataset", "ml1m"]), stage, {})
    assert settings.model == stage.model
    for parameter in stage.parameters:
        for value in (parameter.low, parameter.high) if parameter.is_range else parameter.values:
            assert with_point(settings, {parameter.name: value}, "here") is not None


def test_the_papers_grid_has_21_round_values() -> None:
    (alpha,) = load_stage("alpha").parameters
    assert alpha.grid() == [round(0.05 * step, 2) for step in range(21)]
    assert len(listed_points(load_stage("alpha"), 1)) == 21


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (HEAD + "space:\n  optimizer.lrr: [0.1]\n", "optimizer.lr"),
        (HEAD + "space:\n  optimiser.lr: [0.1]\n", "optimizer.lr"),
        (HEAD + "space:\n  seed: [1, 2]\n", "'seed' cannot be searched"),
        (HEAD + "space:\n  optimizer.lr: [0.1, fast]\n", "optimizer.lr is 'fast'"),
        (HEAD + "space:\n  loss.alpha: {low: -0.5, high: 1, step: 0.5}\n", "loss.alpha is -0.5"),
        (HEAD + "space:\n  loss.alpha: {low: 1, high: 0}\n", "loss.alpha.high"),
        (HEAD + "space:\n  loss.alpha: {low: 0, high: 1, log: true}\nsearch: random\n", "loss.alpha.low"),
        (HEAD + "space:\n  loss.alpha: {low: 0, hihg: 1}\n", "list of values, or {low"),
        (HEAD + "space:\n  loss.alpha: {low: 0, high: 1, stpe: 0.1}\n", "did you mean 'step'"),
        (HEAD + "space:\n  loss.alpha: {low: 0.0, high: 1.0}\n", "no step, which a grid needs"),
        (
            HEAD + "space:\n  loss.alpha: {low: 0.0, high: 1.0, step: 0.3}\n",
            "loss.alpha.step is 0.3; it must be a divisor",
        ),
        (
            HEAD + "space:\n  encoder.num_blocks: {low: 1, high: 3, step: 0.5}\n",
            "num_blocks.step is 0.5; it must be a whole",
        ),
        (HEAD + "space:\n  encoder.num_blocks: [[1, 2], 3]\n", "num_blocks is [1, 2]; it must be a number or a text"),
        (HEAD + "space: {}\n", "space must be a mapping"),
        (HEAD + "serach: random\nspace:\n  loss.alpha: [1.0]\n", "did you mean 'search'"),
        (HEAD + "search: ranodm\nspace:\n  loss.alpha: [1.0]\n", "one of 'grid', 'random', 'optuna'"),
        ("model: sasrecp\nspace:\n  loss.alpha: [1.0]\n", "did you mean 'sasrec_p'"),
        ("space:\n  loss.alpha: [1.0]\n", "model is missing"),
        ("- loss.alpha\n", "must be a mapping"),
    ],
)
def test_a_wrong_space_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, named: str
) -> None:
    with pytest.raises(InputError, match=r"conf/tune/own\.yaml|no step") as caught:
        stage_of(tmp_path, monkeypatch, content)
    assert named in str(caught.value)


def test_another_search_may_do_without_what_a_grid_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = HEAD + "space:\n  optimizer.lr: {low: 1e-4, high: 0.1, log: true}\n"
    with pytest.raises(InputError, match="no step, which a grid needs"):
        stage_of(tmp_path, monkeypatch, content)
    (stage,) = planned_stages(parse(["--stages", "own", "--search", "optuna", "--num-samples", "7"]))
    assert (stage.search, stage.num_samples) == ("optuna", 7)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = HEAD + "search: random\nspace:\n  optimizer.lr: [1e-3, 2e-3]\n  loss.alpha: {low: 1e-2, high: 1}\n"
    rate, alpha = stage_of(tmp_path, monkeypatch, content).parameters
    assert (rate.values, alpha.low) == ((0.001, 0.002), 0.01)


def test_more_random_samples_keep_the_first_ones_and_none_comes_twice() -> None:
    space = (Parameter("encoder.num_blocks", (1, 2, 3)), Parameter("optimizer.lr", low=1e-4, high=1e-2, log=True))
    few, many = (Stage("own", "sasrec_p", space, search="random", num_samples=n) for n in (5, 20))
    assert listed_points(many, 3)[:5] == listed_points(few, 3)
    assert listed_points(few, 3) != listed_points(few, 4)
    small = Stage("own", "sasrec_p", space[:1], search="random", num_samples=20)
    assert sorted(point["encoder.num_blocks"] for point in listed_points(small, 1)) == [1, 2, 3]


def record(point: dict[str, Any], scores: list[float]) -> Record:
    epochs = [{"epoch": place, "score": score, "seconds": 1.0} for place, score in enumerate(scores, 1)]
    return Record(point, "finished", "", max(scores), 1, epochs, 9.0)


def test_optuna_suggests_first_what_began_and_goes_by_what_ended() -> None:
    stage = Stage("own", "sasrec_p", (Parameter("optimizer.lr", low=0.0, high=1.0),), search="optuna")
    ended = [record({"optimizer.lr": x}, [1 - abs(x - 0.3)]) for x in [0.02 * step for step in range(50)]]
    found = DistinctPoints(stage, 1, ended, [{"optimizer.lr": 0.77}])
    suggested = [found.suggest(f"trial {place}")["point"]["optimizer.lr"] for place in range(11)]
    assert suggested[0] == 0.77
    assert abs(sum(suggested[1:]) / 10 - 0.3) < 0.15  # without knowledge, the mean would be .5


def drawn(stage: Stage, ended: list[Record], begun: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """What Optuna suggests to trials that run at the same time."""
    found = DistinctPoints(stage, 1, ended, begun)
    return [found.suggest(f"trial {place}")["point"] for place in range(count)]


def test_optuna_draws_no_point_again_however_often_it_is_killed() -> None:
    stage = Stage("own", "sasrec_p", (Parameter("optimizer.lr", low=0.0, high=1.0),), search="optuna")
    first = drawn(stage, [], [], 2)
    second = drawn(stage, [], first, 4)
    assert second[:2] == first
    third = drawn(stage, [], second, 6)
    assert third[:4] == second
    assert len({point["optimizer.lr"] for point in third}) == 6


def test_optuna_suggests_every_point_of_a_small_space_once() -> None:
    """Three of six points are known, and one of them failed. After the others, the space is used up."""
    space = (Parameter("encoder.num_blocks", (1, 2, 3)), Parameter("loss.alpha", low=0.0, high=0.5, step=0.5))
    stage = Stage("own", "sasrec_p", space, search="optuna", num_samples=30)
    points = stage.grid()
    ended = [record(point, [0.1]) for point in points[:3]]
    ended[0] = dataclasses.replace(ended[0], state="failed", best_score=None)
    found = DistinctPoints(stage, 1, ended, [points[3]])
    suggested = [found.suggest(f"trial {place}") for place in range(3)]
    assert suggested[0] == {"point": points[3]}
    assert sorted(map(str, suggested)) == sorted(str({"point": point}) for point in points[3:])
    found.on_trial_complete("trial 0", {"score": 0.2, "failed": ""})
    found.on_trial_complete("trial 1", {"score": 0.4, "failed": "it diverged"})
    found.on_trial_complete("trial 2", None, error=True)
    assert found.suggest("trial 3") == Searcher.FINISHED and found.is_exhausted


def test_ranges_are_those_of_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting with fractions may have whole ends. Steps count from the low end in every search."""
    space = "space:\n  loss.alpha: {low: 0, high: 1, step: 0.25}\n  encoder.num_blocks: {low: 1, high: 7, step: 3}\n"
    stage = stage_of(tmp_path, monkeypatch, HEAD + "search: random\nnum_samples: 60\n" + space)
    wanted = {(alpha, blocks) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0) for blocks in (1, 4, 7)}
    by_random = {tuple(point.values()) for point in listed_points(stage, 1)}
    assert by_random == wanted
    found = DistinctPoints(dataclasses.replace(stage, search="optuna"), 1, [], [])
    assert {tuple(found.suggest(f"trial {place}")["point"].values()) for place in range(15)} == wanted
    assert {tuple(point.values()) for point in stage.grid()} == wanted


def test_the_points_of_a_grid_are_checked_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 is a multiple of 3; the default 64 is not, so 64 with 3 heads is invalid."""
    content = HEAD + "space:\n  encoder.hidden_size: [{sizes}]\n  encoder.num_heads: [3]\n"
    assert len(stage_of(tmp_path, monkeypatch, content.format(sizes="48, 96")).grid()) == 2
    (tmp_path / "conf/tune/own.yaml").write_text(content.format(sizes="48, 64"))
    with pytest.raises(InputError, match=r"encoder\.num_heads is 3; .* \(the space has hidden_size 64, num_heads 3\)"):
        require_space(load_stage("own"), Settings())


def test_successive_halving_knows_the_trials_of_an_earlier_command() -> None:
    from ray.tune.schedulers import TrialScheduler

    stage = Stage(
        "own", "sasrec_p", (Parameter("optimizer.lr", (0.1,)),), scheduler="asha", grace_epochs=2, reduction=2
    )

    controller: Any = None
    late: Any = SimpleNamespace(trial_id="late")

    def decides(ended: list[Record], score: float) -> str:
        asha = scheduler(stage, 10, ended)
        asha.on_trial_add(controller, late)
        return asha.on_trial_result(controller, late, {"epoch": 2, "score": score})

    ended = [record({"optimizer.lr": x}, [0.5, 0.5 + x]) for x in (0.1, 0.2, 0.3)]
    assert decides(ended, 0.4) == TrialScheduler.STOP
    assert decides(ended, 0.9) == TrialScheduler.CONTINUE
    assert decides([], 0.4) == TrialScheduler.CONTINUE


def test_the_winner_does_not_hang_on_the_order_of_ends() -> None:
    found = [record({"optimizer.lr": x}, [score]) for x, score in ((0.1, 0.5), (0.2, 0.7), (0.3, 0.7))]
    assert best_of(found) == best_of(found[::-1]) == found[1], "of equal scores, the smaller value"
    assert ranked(found) == ranked(found[::-1]) == [found[1], found[2], found[0]]
    assert best_of([]) is None
    lost = dataclasses.replace(found[1], state="failed", reason="it diverged", best_score=0.9)
    assert best_of([*found, lost]) == best_of(found)
    assert ranked([lost, *found])[-1] == lost and best_of([lost]) is None
    assert trial_name({"a": 1, "b": 2}) == trial_name({"b": 2, "a": 1})


def test_a_found_file_is_taken_by_train_and_weights_stay_for_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.yaml").write_text("model: pnfrec_pn\nencoder:\n  hidden_size: 32\nloss:\n  alpha: 0.3\n  beta: 0.0\n")
    settings = parse_train_settings(["--config", "best.yaml"])
    assert (settings.model, settings.loss.alpha, settings.encoder.hidden_size) == ("pnfrec_pn", 0.3, 32)
    with pytest.raises(InputError, match="is for --model pnfrec_pn, not sasrec"):
        parse_train_settings(["--config", "best.yaml", "--model", "sasrec"])
    beta = base_settings(parse(["--config", "best.yaml"]), load_stage("beta"), {})
    assert (beta.model, beta.loss.alpha, beta.encoder.hidden_size) == ("pnfrec", 0.3, 32)
    whole = base_settings(parse(["--config", "best.yaml"]), load_stage("sasrec_c"), {})
    assert (whole.model, whole.loss.alpha, whole.encoder.history) == ("sasrec_c", 0.0, "all")


def test_other_stages_are_another_sweep() -> None:
    assert parse(["--dataset", "ml1m"]).directory.name == "tune-ml1m"
    assert parse(["--dataset", "ml1m", "--stages", "encoder", "alpha", "beta"]).directory.name == "tune-ml1m"
    assert parse(["--dataset", "ml1m", "--stages", "joint"]).directory.name == "tune-ml1m-joint"
    assert parse(["--stages", "alpha", "--name", "mine"]).directory.name == "mine"
