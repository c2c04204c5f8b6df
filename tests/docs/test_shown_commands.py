"""The commands that README and docs show: each is known, its flags are right, and what takes seconds is run."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import called

from pnfrec_dist.__main__ import COMMANDS
from pnfrec_dist.cli import parse_flags, parse_train_settings
from pnfrec_dist.data.prepared import open_prepared
from spark_jobs.prepare import PrepareSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(rf"(?:\$ )?((?:make|python -m|pnfrec (?={'|'.join(COMMANDS)})) ?\S[^#]*)")
PLAN_ONLY = {"pnfrec_dist.train", "pnfrec_dist.reproduce", "tune.__main__"}
"""They have --dry-run, and would train for minutes."""
NOT_RUN = ("benchmarks.", "pytest", "spark_jobs.package", "pnfrec_dist.tracking", "pnfrec_dist.serve")
"""They run for long, or until they are ended."""


def shown() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(page, command) of those in blocks, and of those in sentences, which may be cut short."""
    blocks: list[tuple[str, str]] = []
    sentences: list[tuple[str, str]] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        lines = [line for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
        for found, texts in ((blocks, lines), (sentences, re.findall(r"`([^`\n]+)`", prose))):
            found += [(page.name, match[1].strip()) for t in texts if (match := COMMAND.fullmatch(t.split(" #")[0]))]
    return list(dict.fromkeys(blocks)), list(dict.fromkeys(sentences))


def expanded(command: str) -> list[list[str]]:
    """[module, flag, ...] of each Python command that it stands for; a make target is expanded by make."""
    words = shlex.split(re.sub(r"\[(.*?)\]", r"\1", command), posix=True)
    if words[0] == "pnfrec":
        return [[COMMANDS[words[1]][0], *words[2:]]]
    if words[0] != "make":
        return [words[words.index("-m") + 1 :]]
    line = ["make", "-n", "-s", "-o", ".venv/.installed", *words[1:]]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    recipes = [shlex.split(recipe) for recipe in done.stdout.replace("\\\n", " ").splitlines() if " -m " in recipe]
    return [words[words.index("-m") + 1 :] for words in recipes]


def replaced(flags: list[str], values: dict[str, str]) -> list[str]:
    """With other values for the flags of these names, where they are given."""
    found = list(flags)
    for place, flag in enumerate(flags[:-1]):
        if flag in values:
            found[place + 1] = values[flag]
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    """A prepared data set named tiny, also without a holdout in data/whole, and one trained run."""
    from pnfrec_dist.train import main

    directory = tmp_path_factory.mktemp("shown")
    prepared_writer(directory / "data" / "prepared" / "tiny", users=1200, items=60)
    prepared_writer(directory / "data" / "whole" / "tiny", users=1200, items=60, has_holdout=False)
    called(main, directory, "--dataset", "tiny", "--epochs", "1", "--encoder.hidden-size", "8", "--num-workers", "1")
    return directory


def run_it(module: str, flags: list[str], workspace: Path) -> None:
    """Runs a command on the small data set. If it trains, its plan alone; if it serves or prepares, its flags."""
    name = {"tune": "tune.__main__", "spark_jobs": "spark_jobs.prepare"}.get(module, module)
    if name.startswith(NOT_RUN):
        require_known(name)
        return
    main = importlib.import_module(name).main
    (run,) = (workspace / "runs").glob("pnfrec*-tiny*")
    user = open_prepared(workspace / "data/prepared/tiny").user_ids("test")[0].as_py()
    out, index = (str(workspace / f"out-{module}") for module in (name, "pnfrec_dist.index"))
    values = {
        "--dataset": "tiny",
        "--run": str(run),
        "--show": user,
        "--out": out,
        "--index": index,
        "--final": str(run),
    }
    flags = replaced(flags, values)
    if name == "spark_jobs.prepare":
        parse_flags(PrepareSettings, PrepareSettings(), flags, "spark_jobs")
    elif name == "pnfrec_dist.train" and {"--ray-address", "--init-from"} & set(flags):
        parse_train_settings(flags)
    elif name in PLAN_ONLY:
        on_this_machine = replaced(flags, {"--config": "default", "--ray-address": ""})
        called(main, workspace, *on_this_machine, "--dry-run")
    else:
        called(main, workspace, *flags)


def require_known(module: str) -> None:
    assert importlib.util.find_spec(module) is not None, module


BLOCKS, SENTENCES = shown()


def test_commands_are_found() -> None:
    commands = {command for _, command in BLOCKS}
    assert len(BLOCKS) > 20 and len(SENTENCES) > 40
    assert {"make train", "pnfrec prep --dataset synthetic", "python -m tune --dataset ml1m"} <= commands


@pytest.mark.parametrize(("page", "command"), [pair for pair in SENTENCES if ".NAME" not in pair[1]])
def test_a_command_in_a_sentence_is_known(page: str, command: str) -> None:
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M), command
    else:
        require_known(expanded(command)[0][0])


@pytest.mark.integration
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(("page", "command"), [pair for pair in BLOCKS if "additions:" not in pair[1]])
def test_a_command_in_a_block_runs(page: str, command: str, workspace: Path) -> None:
    """Those with additions.py are run by test_extending.py."""
    for module, *flags in expanded(command):
        run_it(module, flags, workspace)


def python_of(page: Path) -> str:
    """The Python of a page. docs/python.md and docs/extending.md have tests of their own."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S))


def output_of(code: str, directory: Path) -> list[str]:
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.integration
def test_readmes_code_runs(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(workspace / "data")
    assert len(output_of(python_of(ROOT / "README.md").replace("synthetic", "tiny"), tmp_path)) == 2


@pytest.mark.integration
def test_code_that_uses_a_logged_or_exported_model_runs(workspace: Path) -> None:
    """With the run and the item ids of the small data set. ONNX is not a dependency: that block is left out."""
    from pnfrec_dist.export import main

    (run,) = (workspace / "runs").glob("pnfrec*-tiny*")
    called(main, workspace, "--run", str(run), "--out", "exported")
    pages = [page for page in PAGES if python_of(page) and page.stem not in ("README", "python", "extending")]
    assert {page.stem for page in pages} == {"recommend", "reproduce", "tour"}
    code = "\n".join(python_of(page) for page in pages)
    code = re.sub(r'"(runs/\S*|models:/\S*)"', f'"{run}/model"', code)
    code = re.sub(r"torch\.onnx\.export\(\n.*?^\)\n", "", code, flags=re.M | re.S)
    numbers = {raw: str(number) for number, raw in enumerate(dict.fromkeys(re.findall(r'"(\d+)"', code)), 1)}
    output = output_of(re.sub(r'"(\d+)"', lambda match: f'"{numbers[match[1]]}"', code), workspace)
    assert output[-1].startswith("[Answer(items=[") and "unknown=[]" in output[-1]
