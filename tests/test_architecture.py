"""Rooms: imports point one way and in no circle, heavy packages have a home, files and functions stay small."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pnfrec_dist", "spark_jobs", "tune")
COMMANDS = {"train", "evaluate", "recommend", "serve", "export", "reproduce"}
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
]
"""A room imports from its own floor's own room and from floors above it in this list, which is written bottom up."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BARE_ROOMS = {"errors", "distributed", "files", "config", "data", "model", "losses", "evaluation", "training"}
"""They run where only BARE_PACKAGES are installed."""
BARE_PACKAGES = {"torch", "triton", "numpy", "pyarrow", "safetensors", "yaml", "pnfrec_dist"}
"""torch brings triton where there is a GPU."""
MORE_PACKAGES = {"pnfrec_dist.files.pages": {"markdown_it"}}
"""Those of a module in BARE_ROOMS that no other of them imports."""
HOME = {
    "pyspark": {"spark_jobs"},
    "py4j": {"spark_jobs"},
    "ray": {"pnfrec_dist/cluster", "tune"},
    "optuna": {"tune"},
    "mlflow": {"pnfrec_dist/tracking", "pnfrec_dist/inference/pyfunc.py", "pnfrec_dist/inference/pyfunc_script.py"},
    "tyro": {"pnfrec_dist/cli.py"},
    "yaml": {"pnfrec_dist/config/conf_files.py", "tune/report.py"},
    "rich": {"pnfrec_dist/experiments/progress.py", "tune/watch.py"},
    "matplotlib": {"pnfrec_dist/experiments/plots.py", "spark_jobs/figures.py"},
    "triton": {"pnfrec_dist/losses/gpu_kernels.py"},
    "markdown_it": {"pnfrec_dist/files/pages.py"},
    "fcntl": {"pnfrec_dist/files/locks.py"},
}
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
EACH_MODULE = pytest.mark.parametrize("module", MODULES)


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            of_modules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= of_modules or {node.module or ""}
    return found


def room(module: str) -> str:
    """ "pnfrec_dist.training.loop" -> "training"."""
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
                assert room(other) == room(module) or FLOOR[room(other)] < FLOOR[room(module)], (
                    f"{module} may not import {other}"
                )
        elif package == "spark_jobs" and not other.startswith("spark_jobs"):
            needed = any(other.startswith(f"pnfrec_dist.{name}") for name in SPARK_JOBS_NEED)
            assert needed, f"{module} imports {other}"
        elif package == "tune":
            assert not other.startswith("spark_jobs"), f"{module} imports {other}"
            if other.startswith("pnfrec_dist."):
                assert room(other) not in COMMANDS, f"{module} imports {other}"
            elif module.count(".") and other.count("."):
                order = [TUNE_FILES.index(name.split(".")[1]) for name in (other, module)]
                assert order[0] < order[1], f"{module} imports {other}"


def test_there_is_no_circle() -> None:
    """Of modules, within a room as between rooms."""
    left = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while leaves := [name for name, needs in left.items() if not needs & left.keys() - {name}]:
        for name in leaves:
            del left[name]
    assert not left, f"a circle is among {sorted(left)}"


def test_only_the_named_modules_lie_at_the_top() -> None:
    found = {path.stem for path in (ROOT / "pnfrec_dist").glob("*.py")}
    assert found == {"__init__", "cli", "errors", "distributed", *COMMANDS}
    assert {path.name for path in (ROOT / "pnfrec_dist").iterdir() if path.is_dir()} - {"__pycache__"} == {
        room for room in FLOOR if (ROOT / "pnfrec_dist" / room).is_dir()
    }


@EACH_MODULE
def test_heavy_packages_stay_home(module: str) -> None:
    path = MODULES[module]
    for imported in imports(path):
        places = tuple(HOME.get(imported.split(".")[0], {own(path)}))
        assert own(path).startswith(places), f"{own(path)} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pnfrec_dist.") and room(m) in BARE_ROOMS])
def test_training_runs_on_a_bare_gpu_box(module: str) -> None:
    packages = {name.split(".")[0] for name in imports(MODULES[module])}
    extra = packages - BARE_PACKAGES - MORE_PACKAGES.get(module, set()) - set(sys.stdlib_module_names)
    assert not extra, f"{module} imports {extra}"
    if module not in MORE_PACKAGES:
        assert not imports(MODULES[module]) & MORE_PACKAGES.keys(), f"{module} needs more than a bare box has"
