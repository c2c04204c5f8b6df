"""The flags of a sweep."""

import pytest

from pnfrec_dist.errors import InputError
from tune.options import base_settings, parse, planned_stages


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--stages", "alhpa"], "did you mean 'alpha'"),
        (["--stages", "alpha,beta"], "unknown stage 'alpha,beta'"),
        (["--time-budget", "3x"], "--time-budget is '3x'"),
        (["--time-budget", "0h"], "--time-budget is '0h'"),
        (["--num-samples", "0"], "--num-samples is 0"),
        (["--max-concurrent", "0"], "--max-concurrent is 0"),
        (["--stages", "alpha", "--num-samples", "5"], "--num-samples is 5, but a grid runs all of its points"),
        (["--optimizer.lr=0.1"], "stage encoder searches --optimizer.lr"),
        (["--encoder.hidden-size", "8"], "stage encoder searches --encoder.hidden-size"),
        (["--resume", "never"], "--resume is for a single training"),
        (["--name", "x" * 101], "at most 100 letters"),
        (["--name", "a/b"], "--name is 'a/b'"),
        (["--model", "pnfrec"], "--model comes from the stage"),
        (["--search", "tpe"], "invalid choice: 'tpe'"),
        (["--num-sample", "3"], "unknown flag --num-sample; did you mean --num-samples"),
        (["ml1m"], "'ml1m' is not a flag"),
        (["--gpus-per-trial", "-1"], "--gpus-per-trial is -1; it must be 0, a share of a GPU"),
        (
            ["--gpus-per-trial", "1.5"],
            "--gpus-per-trial is 1.5; it must be 0, a share of a GPU from 0.01 to 1, or a whole",
        ),
        (["--gpus-per-trial", "0.001"], "--gpus-per-trial is 0.001"),
        (["--gpus-per-trial", "nan"], "--gpus-per-trial is nan"),
        (["--gpus-per-trial", "inf"], "--gpus-per-trial is inf"),
        (["--min-workers", "1"], "--min-workers is for a single training; use --workers-per-trial"),
        (["--write-config", "found.yaml"], "--write-config is 'found.yaml'; leave out .yaml"),
        (["--write-config", "ml1m"], "conf/train/ already has this file"),
        (["--name", ""], "--name is ''"),
        (["--encoder.hiden-size", "3"], "did you mean --encoder.hidden-size"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags: list[str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        planned_stages(parse(flags))
    assert named in str(caught.value)


def test_the_papers_protocol_is_the_default() -> None:
    options = parse(["--dataset", "ml1m", "--time-budget", "1.5h", "--epochs", "20"])
    assert (options.stages, options.time_budget, options.flags) == (
        ("encoder", "alpha", "beta"),
        5400.0,
        ("--epochs", "20"),
    )
    assert options.directory.name == "tune-ml1m"
    assert parse(["--stages", "lr", "lr"]).directory.name == "tune-synthetic-lr"
    stages = planned_stages(options)
    assert [stage.name for stage in stages] == ["encoder", "alpha", "beta"]
    settings = base_settings(options, stages[1], {"encoder.hidden_size": 128})
    assert (settings.model, settings.epochs, settings.encoder.hidden_size) == (stages[1].model, 20, 128)
    assert settings.num_workers == 1 and settings.output_dir == str(options.directory / "alpha")


@pytest.mark.parametrize(("gpus", "expected"), [("0.1", 1), ("1", 1), ("2", 2), ("0", None)])
def test_the_settings_of_a_trial_have_whole_gpus(gpus: str, expected: int | None) -> None:
    """So the winner is trained on a whole GPU, and no trial's settings depend on the share."""
    options = parse(["--gpus-per-trial", gpus])
    assert base_settings(options, planned_stages(options)[0], {}).num_gpus == expected
