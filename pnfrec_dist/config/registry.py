"""The parts that settings choose by name. To add a choice, write a file with the object and add a line here.

A name stands for "module:object", which is imported when it is used, so that reading settings does not import torch.
Settings also accept a "module:object" of your own, which every worker must be able to import (docs/extending.md).
"""

import contextlib
import importlib
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pnfrec_dist.errors import InputError, nearest, one_line, require

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Registry:
    """The choices of one setting."""

    setting: str
    known: dict[str, str]
    """name -> module:object"""
    kind: str
    """module:object of the class of all choices"""
    rule: str
    """what a choice must be, for the error"""
    is_class: bool = False
    """a choice is a subclass of `kind`, not an object of it"""

    def require(self, name: str) -> None:
        """Raises InputError for a name that is neither known nor of the form module:object. Imports nothing."""
        module, colon, what = name.partition(":")
        is_own = colon and all(part.isidentifier() for part in [*module.split("."), *what.split(".")])
        if name not in self.known and not is_own:
            raise InputError(f"{self.setting} is {name!r}; {nearest(name, self.known)} (or your own module:object)")

    def load(self, name: str) -> Any:
        """The object. Raises InputError if there is none, or none of the kind."""
        self.require(name)
        with self.own_code(name, "cannot be imported"):
            found = _imported(self.known.get(name, name))
        kind = _imported(self.kind)
        fits = isinstance(found, type) and issubclass(found, kind) if self.is_class else isinstance(found, kind)
        require(fits, self.setting, name, self.rule)
        missing = sorted(getattr(found, "__abstractmethods__", ())) if self.is_class else []
        require(not missing, self.setting, name, f"{self.rule} with the method {', '.join(missing)}")
        return found

    @contextlib.contextmanager
    def own_code(self, name: str, problem: str) -> Iterator[None]:
        """Raises InputError for an exception of a user's own code. For a known name the exception stays."""
        try:
            yield
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            if name in self.known:
                raise
            raise InputError(f"{self.setting} is {name!r}, which {problem} ({_told(error)}); correct it") from error

    def require_names(self, names: Iterable[str]) -> None:
        """Raises InputError for a name in the log that MLflow does not take, and for one that occurs twice."""
        for name, count in Counter(names).items():
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
                rule = "letters, digits, '_' and '-', and '.' after the first"
                raise InputError(f"{self.setting}: a value is named {name!r} in the log; use only {rule}")
            if count > 1:
                raise InputError(
                    f"{self.setting}: more than one value is named {name!r} in the log; rename or remove one"
                )


def _imported(where: str) -> Any:
    """where: module:object."""
    module, _, what = where.partition(":")
    found: Any = importlib.import_module(module)
    for part in what.split("."):
        found = getattr(found, part)
    return found


def _told(error: BaseException) -> str:
    """An exception of a user's own code: its type, text and line."""
    text = one_line(f"{type(error).__name__}: {error}").rstrip(":")
    if isinstance(error, SyntaxError):  # its text has the line
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(("<", f"{PACKAGE}/"))]
    return f"{text}, {Path(own[-1].filename).name} line {own[-1].lineno}" if own else text


BLOCKS = Registry(
    "encoder.block",
    {"sasrec": "pnfrec_dist.model.sasrec_block:SASRecBlock"},
    "pnfrec_dist.model.block:Block",
    "a class of Block",
    is_class=True,
)
"""model/block.py defines blocks."""

TERMS = Registry(
    "loss.terms",
    {
        "ce_main": "pnfrec_dist.losses.terms:CE_MAIN",
        "ce_negative": "pnfrec_dist.losses.terms:CE_NEGATIVE",
        "contrastive": "pnfrec_dist.losses.contrastive:CONTRASTIVE",
        "ce_likes": "pnfrec_dist.losses.terms:CE_LIKES",
    },
    "pnfrec_dist.losses.terms:AnyTerm",
    "an object of DirectTerm",
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
    "pnfrec_dist.losses.catalog_loss:CatalogLoss",
    "an object of CatalogLoss",
)
"""losses/catalog_loss.py defines cross-entropies."""

MEASURES = Registry(
    "evaluation.measures",
    {
        "hr": "pnfrec_dist.evaluation.metrics:hit_rate",
        "ndcg": "pnfrec_dist.evaluation.metrics:ndcg",
        "mrr": "pnfrec_dist.evaluation.metrics:mrr",
    },
    "collections.abc:Callable",
    "a function of target ranks and k",
)
"""(target_rank [U], k) -> a value for each user, [U] (evaluation/metrics.py)."""
