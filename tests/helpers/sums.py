"""Means from the sums of a step."""

import torch
from torch import Tensor

from pnfrec_dist.training.step import StepSums


def means_of(sums: StepSums) -> Tensor:
    """Mean loss of each term, [J]; 0 if no token has one."""
    return torch.tensor([total / max(sums.counts[name], 1) for name, total in sums.totals.items()], dtype=torch.float64)
