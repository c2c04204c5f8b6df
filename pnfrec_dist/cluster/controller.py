"""What Ray Train's controller runs for a training.

The controller is a separate process that starts with every training, so nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.backend import BackendConfig

from pnfrec_dist.errors import first_line
from pnfrec_dist.training.events import WorkersFailed


@dataclass
class OwnRendezvous(BackendConfig):
    """Lets the workers form the process group (worker.py), because Ray Train's own store listens on all interfaces.

    It replaces ray.train.torch.TorchConfig, which would make the controller import torch.
    """

    backend: str
    """gloo or nccl; TorchTrainer reads it"""


class FailureReport(ray.train.UserCallback):
    """Reports to the driver why workers are started again. Runs in Ray Train's controller."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reasons = {rank: _reason(error) for rank, error in sorted(worker_exceptions.items())}
        ray.get(self.board.post.remote([WorkersFailed(reasons)]))


def _reason(error: Exception) -> str:
    """The line of an error that says most: the last of a worker's traceback, or the first of Ray's own errors."""
    text = str(error).strip()
    return text.splitlines()[-1].strip() if "Traceback" in text else first_line(error)
