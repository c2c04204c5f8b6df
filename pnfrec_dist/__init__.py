"""Distributed training of sequential recommenders that learn from likes and dislikes (PNFRec, RecSys '25).

In a Python program or a notebook, in one process:

    import pnfrec_dist as pnfrec

    run = pnfrec.train(pnfrec.train_settings("synthetic", changes={"epochs": 2}))
    model = pnfrec.load_model(run)
    model.recommend(liked=["17", "4"], disliked=["23"], k=5)

docs/python.md is the guide. Names are imported when they are first used, so that `import pnfrec_dist` takes no time.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pnfrec_dist.config.settings import Settings
    from pnfrec_dist.data.prepared import open_prepared
    from pnfrec_dist.experiments.python_api import TrainedRun, evaluate, load_model, train, train_settings
    from pnfrec_dist.inference.loaded_model import Feedback, Model, Recommendations

for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")
# torch and oneDNN read these when they are loaded. On a CPU, they keep kernels for the shapes of bfloat16 matmuls, by
# default 1,024 of each kind. Batches have ever new shapes, so a training had 8 GB of kernels after an hour.

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A thread of torch that waits for the others keeps its core busy for so many rounds, some 0.1 ms, by default 30 times
# as long. Beside other programs, the others wait for a core meanwhile (docs/decisions.md).

_HOMES = {
    "Feedback": "pnfrec_dist.inference.loaded_model",
    "Model": "pnfrec_dist.inference.loaded_model",
    "Recommendations": "pnfrec_dist.inference.loaded_model",
    "Settings": "pnfrec_dist.config.settings",
    "TrainedRun": "pnfrec_dist.experiments.python_api",
    "evaluate": "pnfrec_dist.experiments.python_api",
    "load_model": "pnfrec_dist.experiments.python_api",
    "open_prepared": "pnfrec_dist.data.prepared",
    "train": "pnfrec_dist.experiments.python_api",
    "train_settings": "pnfrec_dist.experiments.python_api",
}
__all__ = [
    "Feedback",
    "Model",
    "Recommendations",
    "Settings",
    "TrainedRun",
    "evaluate",
    "load_model",
    "open_prepared",
    "train",
    "train_settings",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("pnfrec-dist")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Package(ModuleType):
    """Keeps the functions train and evaluate if the modules of the same names (commands) are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
