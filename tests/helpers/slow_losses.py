"""The paper's formulas in plain Python, number by number."""

import math

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_cross_entropy(hidden: list[list[float]], classes: list[list[float]], targets: list[int]) -> float:
    total = 0.0
    for h, target in zip(hidden, targets, strict=True):
        logits = [sum(a * b for a, b in zip(h, c, strict=True)) for c in classes]
        total += -math.log(math.exp(logits[target - 1]) / sum(math.exp(v) for v in logits))
    return total


def slow_contrastive(
    hidden: list[list[float]],
    following: list[list[float]],
    negatives: list[list[float]],
    similarity: str,
    temperature: float,
) -> float:
    """One user: sum over positions of -log(exp f(h, next) / (exp f(h, next) + sum_j exp f(h, j)))."""

    def f(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        if similarity == "cosine":
            dot /= math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return dot / temperature

    total = 0.0
    for h, nxt in zip(hidden, following, strict=True):
        positive = math.exp(f(h, nxt))
        total += -math.log(positive / (positive + sum(math.exp(f(h, j)) for j in negatives)))
    return total
