"""The flags of a reproduction."""

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.reproduction import uneven_selection
from pnfrec_dist.experiments.reproduction_options import parse
from pnfrec_dist.experiments.reproduction_plan import planned


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "0"], "--seeds is '0'; it must be a number of seeds, from 1 to 100"),
        (["--name", ""], "--name is ''; a name may only have"),
        (["--at-a-time", "0"], "--at-a-time is 0; it must be >= 1"),
        (["--at-a-time", "two"], "--at-a-time: invalid int value"),
        (["--models", "pnfrec,sasrec_p"], "separate names by spaces"),
        (["--loss.beta", "0.3"], "--loss.beta defines pnfrec "),
        (["--models", "sasrec", "--encoder.history=positive"], "--encoder.history defines sasrec "),
        (["--name", "../elsewhere"], "--name is '../elsewhere'; a name may only have"),
        (["--seeds", "few"], "--seeds is 'few'; it must be a number of seeds"),
        (["--alphas", "0.1", "much"], "--alphas is '0.1 much'; it must be numbers, or grid"),
        (["--betas", "-1"], r"loss.beta is -1.0; it must be a finite number >= 0"),
        (["--models", "pnfrek"], "--models has 'pnfrek'; did you mean 'pnfrec'"),
        (["--models", "popularity"], "'popularity', which is not trained"),
        (["--seed", "3"], "--model and --seed are not flags of this command"),
        (["--model", "pnfrec"], "--model and --seed are not flags of this command"),
        (["--resume", "never"], "--resume is 'never'; this command always resumes"),
        (["--epoch", "3"], "--epochs"),
        (["--train.batch-size", "0"], "train.batch_size"),
    ],
)
def test_wrong_input_is_named(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(parse(["--dataset", "tiny", *args]))


def test_how_models_are_evaluated_can_be_changed_for_all() -> None:
    args = ["--models", "pnfrec_plus", "sasrec_p", "--evaluation.select-on", "points", "--evaluation.gamma", "0"]
    found = [training.settings.evaluation for training in planned(parse(["--dataset", "ml1m", *args]))]
    assert len(found) == 10 and {(one.select_on, one.gamma) for one in found} == {("points", 0.0)}


def test_a_comparison_by_different_targets_is_warned_of() -> None:
    args = ["--dataset", "ml1m", "--models", "pnfrec_plus", "sasrec_p", "pnfrec"]
    mixed, even = planned(parse(args)), planned(parse([*args, "--evaluation.select-on", "last"]))
    assert uneven_selection(mixed, has_points=True) == (
        "epochs of pnfrec_plus are chosen by many points, those of sasrec_p, pnfrec by last interactions; "
        "--evaluation.select-on points (or last) gives all the same"
    )
    assert not uneven_selection(mixed, has_points=False) and not uneven_selection(even, has_points=True)


def test_a_data_set_with_a_wrong_name_is_named() -> None:
    with pytest.raises(InputError, match=r"--dataset is '\.\./tiny'"):
        parse(["--dataset", "../tiny"])


def test_a_grid_is_the_papers() -> None:
    options = parse(["--alphas", "grid", "--betas", "0.5", "0", "--models", "pnfrec", "pnfrec", "sasrec"])
    assert options.curves["alpha"] == tuple(i / 20 for i in range(21)) and options.curves["beta"] == (0.0, 0.5)
    assert options.models == ("pnfrec", "sasrec") and options.seeds == (1, 2, 3, 4, 5)
    assert options.directory.name == "reproduce-synthetic"
