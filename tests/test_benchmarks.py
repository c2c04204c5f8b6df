"""The benchmarks start without the tests' helpers, and the stored page is the one that they write."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.core import PARTS
from benchmarks.core_page import page

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(f"benchmarks.{file.stem}" for file in (ROOT / "benchmarks").glob("[a-z]*.py"))


def test_every_benchmark_can_be_imported() -> None:
    """In a process without pytest's import paths."""
    code = f"import {', '.join(MODULES)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_is_that_of_the_stored_results() -> None:
    docs = ROOT / "docs"
    notes = (docs / "benchmarks-notes.md").read_text(encoding="utf-8")
    results = json.loads((docs / "benchmarks.json").read_text(encoding="utf-8"))
    assert (docs / "benchmarks.md").read_text(encoding="utf-8") == f"{page(results, PARTS)}\n{notes}"
