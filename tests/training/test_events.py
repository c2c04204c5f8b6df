"""Events, and epochs as stored in files."""

import pickle
import subprocess
import sys
from dataclasses import asdict

from pnfrec_dist.training.events import Alive, Earlier, EpochDone, Event, StepDone, epochs_of, stored_epoch

FIRST = EpochDone(1, {"train/loss": 2.0}, 1.5, is_best=True)
SECOND = EpochDone(2, {"train/loss": 1.0}, 1.0, is_best=False)


def test_an_epoch_is_read_as_it_was_stored_and_as_earlier_versions_did() -> None:
    assert set(asdict(FIRST)) == {"epoch", "metrics", "seconds", "is_best"}
    assert stored_epoch(asdict(FIRST)) == FIRST
    assert stored_epoch({"kind": "epoch", **asdict(FIRST)}) == FIRST


def test_which_epochs_an_event_tells_of() -> None:
    assert epochs_of(FIRST) == [FIRST] and epochs_of(Earlier([FIRST, SECOND])) == [FIRST, SECOND]
    step: Event = StepDone(1, 1, 4, 2.0, 10.0)
    assert epochs_of(step) == [] == epochs_of(Alive(0.5))
    assert pickle.loads(pickle.dumps(step)) == step, "they travel between processes"


def test_the_boards_process_needs_no_torch() -> None:
    code = "import sys, pnfrec_dist.training.events; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
