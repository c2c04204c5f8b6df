"""The benchmarks start without the tests' helpers."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(f"benchmarks.{file.stem}" for file in (ROOT / "benchmarks").glob("[a-z]*.py"))


def test_every_benchmark_can_be_imported() -> None:
    """In a process without pytest's import paths."""
    code = f"import {', '.join(MODULES)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
