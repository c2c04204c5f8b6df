"""Means from the sums of a step."""

import torch
from torch import Tensor

from pnfrec_dist.training.step import StepSums


def means_of(sums: StepSums) -> Tensor:
    """Mean loss of each term, [J]; 0 if no token has one."""
    return torch.tensor(list(sums.means.values()), dtype=torch.float64)
