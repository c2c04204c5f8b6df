"""The files for spark-submit: the code runs from the zip, with the settings beside the program."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from helpers.commands import started

from spark_jobs.package import ZIP_NAME, packaged_source

ROOT = Path(__file__).parents[2]


def test_the_zip_holds_all_modules_of_both_packages(tmp_path: Path) -> None:
    target = packaged_source(tmp_path)
    assert target == tmp_path / ZIP_NAME
    files = [file for name in ("pnfrec_dist", "spark_jobs") for file in (ROOT / name).rglob("*.py")]
    with zipfile.ZipFile(target) as zipped:
        assert set(zipped.namelist()) == {file.relative_to(ROOT).as_posix() for file in files}
    assert packaged_source().name == ZIP_NAME, "in a temporary directory"


def test_the_program_runs_from_the_zip_in_another_directory(tmp_path: Path) -> None:
    done = started(tmp_path, "spark_jobs.package", "files")
    assert done.returncode == 0, done.stderr
    files = tmp_path / "files"
    assert {path.name for path in files.iterdir()} == {ZIP_NAME, "prepare.py", "conf"}
    assert (files / "conf" / "dataset" / "ml1m.yaml").is_file()
    environment = os.environ | {"PYTHONPATH": str(files / ZIP_NAME)}

    def run(*line: str) -> str:
        told = subprocess.run(
            [sys.executable, *line], cwd=files, env=environment, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        return told.stdout

    assert "--dataset" in run("prepare.py", "--help")
    again = "from spark_jobs.package import packaged_source; print(packaged_source())"
    assert run("-c", again).strip() == str(files / ZIP_NAME), "from a zip, its own is taken"
