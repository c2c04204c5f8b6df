"""Parts that settings choose by name: known names, own objects, and errors for other names."""

import math
import subprocess
import sys

import pytest

from pnfrec_dist.config import registry
from pnfrec_dist.config.registry import Registry
from pnfrec_dist.errors import InputError

CHOICES = Registry("group.choice", {"root": "math:sqrt", "broken": "math:no_such"})
ALL = [value for value in vars(registry).values() if isinstance(value, Registry)]


def test_a_name_and_an_own_object_are_loaded() -> None:
    assert CHOICES.load("root") is math.sqrt
    assert CHOICES.load("os:path.join").__name__ == "join"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("roof", r"^group\.choice is 'roof'; did you mean 'root'.*module:object"),
        ("math:", "^group.choice is 'math:'"),
        ("a b:c", "^group.choice is 'a b:c'"),
        ("no_such_module:thing", "which cannot be imported .*correct it"),
        ("math:no_such", "which cannot be imported .*correct it"),
    ],
)
def test_what_is_neither_is_said(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        CHOICES.load(name)


def test_a_known_name_that_cannot_be_imported_is_a_fault_of_ours() -> None:
    with pytest.raises(AttributeError):
        CHOICES.load("broken")


@pytest.mark.parametrize("choices", ALL, ids=lambda choices: choices.setting)
def test_every_known_name_is_there(choices: Registry) -> None:
    for name in choices.known:
        assert choices.load(name) is not None


def test_requiring_a_name_imports_nothing() -> None:
    line = "import sys; from pnfrec_dist.config.registry import BLOCKS; BLOCKS.require('sasrec')"
    done = subprocess.run([sys.executable, "-c", f"{line}; assert 'torch' not in sys.modules"], check=False)
    assert done.returncode == 0
