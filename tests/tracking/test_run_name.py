"""The name of a training in MLflow."""

import pytest

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.tracking.run_name import MOST, run_name


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--dataset ml1m", "pnfrec ml1m seed 42"),
        ("--dataset ml1m --model sasrec_p --seed 3", "sasrec_p ml1m seed 3"),
        (
            "--dataset ml1m --encoder.hidden-size 231 --train.precision bfloat16",
            "pnfrec ml1m d=231 bfloat16 seed 42",
        ),
        ("--dataset ml1m --epochs 3 --optimizer.lr 0.0005", "pnfrec ml1m epochs=3 lr=0.0005 seed 42"),
        ("--dataset ml1m --num-workers 1 --output-dir elsewhere --config default", None),
        ("--dataset own --train.compile --evaluation.measures hr ndcg", "pnfrec own measures=hr,ndcg seed 42"),
    ],
)
def test_it_tells_what_differs_from_the_defaults(flags: str, name: str | None) -> None:
    found = run_name(parse_train_settings(["--model", "pnfrec", *flags.split()]))
    assert found == name or (name is None and "elsewhere" not in found and "workers" not in found)


def test_a_files_settings_are_differences_too() -> None:
    assert "d=231" in run_name(
        parse_train_settings(["--dataset", "ml1m", "--config", "ml1m_paper", "--model", "pnfrec"])
    )


def test_many_differences_are_counted() -> None:
    flags = (
        "--epochs 3 --encoder.hidden-size 8 --encoder.num-blocks 1 --encoder.max-length 9 --encoder.dropout 0.3 "
        "--optimizer.lr 0.1 --loss.beta 0.7 --train.batch-size 32"
    )
    name = run_name(parse_train_settings(["--model", "pnfrec", *flags.split()]))
    assert "and 2 more seed 42" in name and name.count("=") == MOST
