"""The command pnfrec: each name leads to its command, wrong names and missing extras are one line."""

import importlib.metadata
import sys

import pytest

from pnfrec_dist.__main__ import COMMANDS, main
from pnfrec_dist.cli import EXIT_INPUT, EXTRA_OF, run_command
from pnfrec_dist.errors import InputError


def test_the_list_of_commands_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pnfrec {importlib.metadata.version('pnfrec-dist')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help_under_the_name_that_was_typed(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for script, called in (("bin/pnfrec", f"pnfrec {name}"), ("bin/pytest", "python -m ")):
        monkeypatch.setattr(sys, "argv", [script, name, "--help"])
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code in (0, None)
        assert f"usage: {called}" in capsys.readouterr().out


def test_an_unknown_command_is_one_line_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown command 'trian'; did you mean 'train'"):
        main(["trian"])


@pytest.mark.parametrize(("package", "whole", "extra"), [(name, *found) for name, found in EXTRA_OF.items()])
def test_what_a_command_lacks_is_one_line(
    package: str, whole: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(module: str) -> int:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(sys, "argv", ["pnfrec"])
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda _: lacking(f"{package}.part"))
    assert stopped.value.code == EXIT_INPUT
    said = capsys.readouterr().err
    assert said == f"error: this command needs {whole}; install it: pip install 'pnfrec-dist[{extra}]'\n"
    with pytest.raises(ModuleNotFoundError):  # a bug in this project keeps its traceback
        run_command(lambda _: lacking("pnfrec_dist.nowhere"))
