"""What runs in Ray Train's controller."""

import subprocess
import sys

import pytest
from ray.train.backend import Backend

from pnfrec_dist.cluster.controller import OwnRendezvous


def test_ray_trains_own_rendezvous_is_left_out() -> None:
    """The store of Ray Train would listen on all interfaces."""
    assert OwnRendezvous("gloo").backend_cls is Backend


@pytest.mark.parametrize("module", ["controller", "event_board"])
def test_processes_that_start_with_every_training_import_no_torch(module: str) -> None:
    code = f"import sys, pnfrec_dist.cluster.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
