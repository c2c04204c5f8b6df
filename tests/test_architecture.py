"""Imports point one way, and each heavy package has its home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors", "events"},
    {"storage", "mappings", "spool"},
    {"schema"},
    {"config", "dataset_config", "distributed"},
    {"data", "model", "losses", "metrics", "retrieval", "cli"},
    {"evaluation", "recommender", "comparison", "experiment", "list_files"},
    {"training", "sender", "plots"},
    {"tracking", "exported"},
    {"serving", "registry", "export_files", "lists"},
    {"progress", "board", "watchdog", "launch", "runs", "machine_metrics", "serving_model", "cards", "list_inputs"},
    {"outcome", "recorded", "report", "trained", "pool"},
    {"driver"},
    {"train", "export", "serve", "recommend", "recommending", "evaluate", "evaluating"},
    {"reproduction"},
    {"reproduce"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HOME = {
    "pyspark": {"spark_jobs"},
    "py4j": {"spark_jobs"},
    "ray": {
        "pnfrec_dist/launch.py",
        "pnfrec_dist/board.py",
        "pnfrec_dist/watchdog.py",
        "pnfrec_dist/pool.py",
        "tune",
    },
    "optuna": {"tune"},
    "mlflow": {
        "pnfrec_dist/tracking.py",
        "pnfrec_dist/sender.py",
        "pnfrec_dist/machine_metrics.py",
        "pnfrec_dist/registry.py",
        "pnfrec_dist/serving.py",
        "pnfrec_dist/serving_model.py",
    },
    "tyro": {"pnfrec_dist/cli.py"},
    "rich": {"pnfrec_dist/progress.py", "tune/watch.py"},
    "matplotlib": {"pnfrec_dist/plots.py", "spark_jobs/report.py"},
    "triton": {"pnfrec_dist/losses/fused.py"},
}
BARE = {
    "training",
    "model",
    "losses",
    "data",
    "retrieval",
    "metrics",
    "evaluation",
    "recommender",
    "exported",
    "lists",
    "distributed",
    "config",
    "dataset_config",
    "schema",
    "storage",
    "mappings",
    "events",
    "errors",
}
BARE_PACKAGES = {"torch", "triton", "numpy", "pyarrow", "safetensors", "pnfrec_dist"}
"""torch brings triton where there is a GPU."""


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("pnfrec_dist"), ids=lambda p: str(p.relative_to(ROOT)))
def test_package_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "pnfrec_dist").parts[0].removesuffix(".py")
    for module in imports(path):
        assert module.split(".")[0] not in ("spark_jobs", "tune"), f"{path} imports {module}"
        if own == "__init__" or not module.startswith("pnfrec_dist."):
            continue
        other = module.split(".")[1]
        assert LEVEL[other] <= LEVEL[own], f"{own} may not import {other}"


@pytest.mark.parametrize("path", files("spark_jobs"), ids=lambda p: str(p.relative_to(ROOT)))
def test_spark_jobs_need_only_the_contract(path: Path) -> None:
    allowed = {f"pnfrec_dist.{name}" for name in ("schema", "storage", "dataset_config", "errors", "cli")}
    assert {m for m in imports(path) if m.startswith("pnfrec_dist")} <= allowed


@pytest.mark.parametrize("path", files("tune"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tune_stands_on_the_driver(path: Path) -> None:
    """Above what runs a training, beside what reproduces the paper; its own files point down, too."""
    order = ["space", "records", "options", "search", "trial", "ending", "watch", "stages", "report", "sweep"]
    order.append("__main__")
    allowed = {name for name, level in LEVEL.items() if level <= LEVEL["train"]}
    for module in imports(path):
        package, _, rest = module.partition(".")
        assert package not in ("spark_jobs",)
        if package == "pnfrec_dist" and rest:
            assert rest.split(".")[0] in allowed, f"{path} imports {module}"
        if package == "tune" and rest:
            assert order.index(rest) < order.index(path.stem), f"{path} imports {module}"


@pytest.mark.parametrize(
    "path", [*files("pnfrec_dist"), *files("spark_jobs"), *files("tune")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_heavy_packages_stay_home(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    for module in imports(path):
        places = tuple(HOME.get(module.split(".")[0], {relative}))
        assert relative.startswith(places), f"{relative} imports {module}"


def test_training_runs_on_a_bare_gpu_box() -> None:
    import sys

    for path in files("pnfrec_dist"):
        if path.relative_to(ROOT / "pnfrec_dist").parts[0].removesuffix(".py") in BARE:
            packages = {m.split(".")[0] for m in imports(path)}
            extra = packages - BARE_PACKAGES - set(sys.stdlib_module_names)
            assert not extra, f"{path} imports {extra}"
