"""Parts that settings choose by name: known names, own objects, and errors for other names."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from pnfrec_dist.config import registry
from pnfrec_dist.config.registry import Registry
from pnfrec_dist.errors import InputError

CHOICES = Registry("group.choice", {"root": "math:sqrt", "broken": "math:no_such"}, "builtins:object", "anything")
KINDS = [
    Registry("group.number", {}, "numbers:Number", "a number"),
    Registry("group.class", {}, "collections.abc:Sized", "a class of Sized", is_class=True),
]
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


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import json\nWHAT = 1 +", r"SyntaxError: .*\(failing.py, line 2\)"),
        ("\n\nraise KeyError('key')", "KeyError: 'key', failing.py line 3"),
        ("def fall():\n    raise SystemExit\nfall()", "SystemExit, failing.py line 2"),
        ("import no_such_module", "ModuleNotFoundError: .*no_such_module.*failing.py line 1"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines, failing.py line 1"),
    ],
)
def test_a_module_that_fails_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    (tmp_path / "failing.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"^group\.choice is 'failing:WHAT'.*\({said}.*\); correct it$"):
        CHOICES.load("failing:WHAT")


@pytest.mark.parametrize("choices", KINDS, ids=lambda choices: choices.setting)
def test_an_object_of_another_kind_is_said(choices: Registry) -> None:
    fitting = {"group.number": "math:pi", "group.class": "builtins:list"}.pop(choices.setting)
    assert choices.load(fitting) is not None
    for name in {"math:pi", "builtins:list", "math:sqrt", "builtins:object"} - {fitting}:
        with pytest.raises(InputError, match=f"is '{name}'; it must be {choices.rule}"):
            choices.load(name)


def test_a_class_without_its_methods_is_said() -> None:
    choices = Registry("group.class", {}, "collections.abc:Sized", "a class of Sized", is_class=True)
    with pytest.raises(InputError, match="it must be a class of Sized with the method __len__"):
        choices.load("collections.abc:Sized")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "a"], "named 'a' in the log; rename"),
        (["a/b"], "named 'a/b' in the log; use only"),
        (["a b"], "named 'a b'"),
        (["schön"], "named 'schön'"),
        ([".."], r"named '\.\.'"),
        ([""], "named ''"),
    ],
)
def test_names_that_cannot_be_logged_are_said(names: list[str], said: str) -> None:
    CHOICES.require_names(["a", "a.b-c_1"])
    with pytest.raises(InputError, match=said):
        CHOICES.require_names(names)


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
