"""result.json can be read again, also in the form of earlier versions."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.training.events import EpochDone
from pnfrec_dist.training.result import DIRECTORY, RESULT, Result, read_result

EPOCHS = [EpochDone(1, {"train/loss": 2.0}, 1.5, is_best=True), EpochDone(2, {"train/loss": 1.0}, 2.0, is_best=False)]
OURS = Result({"seed": 1}, "digest", 12, 2, EPOCHS, 1, "checkpoints/step-000000001", {"hr_p_at_10": 0.5}, {})


@pytest.mark.parametrize("more", [{}, {"kind": "epoch"}])
def test_a_result_is_read_as_it_was_written_and_as_earlier_versions_did(tmp_path: Path, more: dict[str, str]) -> None:
    assert read_result(tmp_path) is None
    (tmp_path / DIRECTORY).mkdir()
    content = asdict(OURS)
    content["epochs"] = [more | entry for entry in content["epochs"]]
    (tmp_path / DIRECTORY / RESULT).write_text(json.dumps(content))
    found = read_result(tmp_path)
    assert found is not None and found == OURS and found.seconds == 3.5


def test_an_epoch_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / RESULT).write_text(json.dumps({**asdict(OURS), "epochs": [{"epoch": 1}]}))
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path)
