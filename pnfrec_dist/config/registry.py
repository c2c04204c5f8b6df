"""The parts that settings choose by name. To add a choice, write a file with the object and add a line here.

A name stands for "module:object", which is imported when it is used, so that reading settings does not import torch.
Settings also accept a "module:object" of your own, which every worker must be able to import (docs/extending.md).
"""

import importlib
from dataclasses import dataclass
from typing import Any

from pnfrec_dist.errors import InputError, nearest


@dataclass(frozen=True)
class Registry:
    """The choices of one setting."""

    setting: str
    known: dict[str, str]
    """name -> module:object"""

    def require(self, name: str) -> None:
        """Raises InputError for a name that is neither known nor of the form module:object. Imports nothing."""
        module, colon, what = name.partition(":")
        is_own = colon and all(part.isidentifier() for part in [*module.split("."), *what.split(".")])
        if name not in self.known and not is_own:
            raise InputError(f"{self.setting} is {name!r}; {nearest(name, self.known)} (or your own module:object)")

    def load(self, name: str) -> Any:
        """The object. Raises InputError if there is none."""
        self.require(name)
        module, _, what = self.known.get(name, name).partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in what.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            if name in self.known:
                raise
            raise InputError(f"{self.setting} is {name!r}, which cannot be imported ({error}); correct it") from error
        return found


BLOCKS = Registry("encoder.block", {"sasrec": "pnfrec_dist.model.sasrec_block:SASRecBlock"})
"""model/block.py defines blocks."""

TERMS = Registry(
    "loss.terms",
    {
        "ce_main": "pnfrec_dist.losses.terms:CE_MAIN",
        "ce_negative": "pnfrec_dist.losses.terms:CE_NEGATIVE",
        "contrastive": "pnfrec_dist.losses.contrastive:CONTRASTIVE",
    },
)
"""losses/terms.py defines terms of the loss."""

CROSS_ENTROPIES = Registry(
    "loss.cross_entropy",
    {
        "exact": "pnfrec_dist.losses.exact:EXACT",
        "sampled_softmax": "pnfrec_dist.losses.sampled_softmax:SAMPLED_SOFTMAX",
        "sce": "pnfrec_dist.losses.sce:SCE",
        "gbce": "pnfrec_dist.losses.gbce:GBCE",
    },
)
"""losses/catalog_loss.py defines cross-entropies."""

MEASURES = Registry(
    "evaluation.measures",
    {
        "hr": "pnfrec_dist.evaluation.metrics:hit_rate",
        "ndcg": "pnfrec_dist.evaluation.metrics:ndcg",
        "mrr": "pnfrec_dist.evaluation.metrics:mrr",
    },
)
"""(target_rank [U], k) -> a value for each user, [U] (evaluation/metrics.py)."""
