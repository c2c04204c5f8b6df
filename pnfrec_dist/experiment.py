"""What a reproduction consists of."""

from dataclasses import dataclass
from pathlib import Path

MODELS = ("pnfrec", "pnfrec_pn", "pnfrec_pc", "sasrec_p", "sasrec_c", "sasrec")
"""The rows of the paper's Table 2."""


@dataclass(frozen=True)
class Options:
    """What is to be reproduced."""

    dataset: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    curves: dict[str, tuple[float, ...]]
    """loss weight -> its values"""
    directory: Path
    report_only: bool
    flags: tuple[str, ...]
    """further flags of the training command"""
