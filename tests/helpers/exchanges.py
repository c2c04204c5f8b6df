"""Records the exchanges between ranks that really happen."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from pnfrec_dist import distributed


@dataclass(frozen=True)
class Call:
    name: str
    bytes: int
    """of the tensor that this rank hands over; 0 for objects"""


@contextlib.contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Yields a list; each exchange of this rank is made as always, and adds a Call to it."""
    calls: list[Call] = []
    places: dict[str, tuple[Any, str, int]] = {
        "all_reduce": (dist, "all_reduce", 0),
        "all_gather": (distributed, "_all_gather", 1),
        "reduce_scatter": (distributed, "_reduce_scatter", 1),
        "all_to_all": (dist, "all_to_all_single", 1),
        "all_gather_object": (dist, "all_gather_object", 1),
        "barrier": (dist, "barrier", 0),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, (module, attribute, place) in places.items():
            patch.setattr(module, attribute, _recording(name, getattr(module, attribute), place, calls))
        yield calls


def _recording(name: str, real: Callable[..., Any], place: int, calls: list[Call]) -> Callable[..., Any]:
    """place: that of the input among the arguments."""

    def call(*arguments: Any, **named: Any) -> Any:
        given = arguments[place] if place < len(arguments) else None
        calls.append(Call(name, given.nbytes if isinstance(given, Tensor) else 0))
        return real(*arguments, **named)

    return call
