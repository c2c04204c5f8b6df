"""The code of docs/python.md runs in one process without Ray and MLflow, and gives the numbers of the command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, started

ROOT = Path(__file__).parents[2]
AFTER = """
import json, sys
loaded = [name for name in ("ray", "mlflow") if name in sys.modules]
json.dump({"loaded": loaded, "test": run.test, "lists": len(lists)}, open("found.json", "w"))
"""


def code_of(page: str) -> str:
    """All Python blocks of a page, one after another."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S))


@pytest.mark.integration
def test_the_guide_s_code_runs_without_ray_and_mlflow(prepared: Path, tmp_path: Path) -> None:
    """With a small data set instead of the built-in one. The command with one worker gives the same numbers."""
    small = tmp_path / "conf" / "train" / "tiny.yaml"
    small.parent.mkdir(parents=True)
    small.write_text("train: {batch_size: 8}\n")
    shutil.move(prepared.parent, tmp_path / "data" / "prepared")
    done = subprocess.run(
        [sys.executable, "-c", code_of("docs/python.md").replace("synthetic", "tiny") + AFTER],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "EpochDone" in done.stdout and done.stdout.endswith("True\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["loaded"] == [] and found["lists"] == 2
    flags = ["--num-workers", "1", "--epochs", "2", "--encoder.hidden-size", "32", "--output-dir", "command"]
    assert started(tmp_path, "pnfrec_dist.train", "--dataset", "tiny", *flags).returncode == 0
    (result,) = (tmp_path / "command").glob("*/result/result.json")
    assert json.loads(result.read_text())["test"] == found["test"]
