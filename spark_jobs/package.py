"""python -m spark_jobs.package DIR: writes the files for spark-submit from this source tree.

DIR/pnfrec_dist.zip holds this project's packages, for --py-files. DIR/prepare.py is the program, and DIR/conf its
settings.
"""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from pnfrec_dist.config.conf_files import PROJECT_CONF

ZIP_NAME = "pnfrec_dist.zip"
_PROGRAM = '''"""spark-submit --py-files pnfrec_dist.zip prepare.py --dataset NAME ..."""

from pnfrec_dist.cli import run_command
from spark_jobs.prepare import main

run_command(main)
'''


def packaged_source(directory: Path | None = None) -> Path:
    """A zip of this project's packages for the Python path. Executors need only pyarrow and numpy in addition.

    directory: where to write it; None: a temporary directory.
    """
    root = Path(__file__).resolve().parents[1]
    if root.is_file():  # this code already runs from such a zip
        return root
    target = (directory or Path(tempfile.mkdtemp(prefix="pnfrec-py-"))) / ZIP_NAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for package in ("pnfrec_dist", "spark_jobs"):
            for file in sorted((root / package).rglob("*.py")):
                out.write(file, file.relative_to(root))
    return target


if __name__ == "__main__":
    into = Path(sys.argv[1])
    into.mkdir(parents=True, exist_ok=True)
    (into / "prepare.py").write_text(_PROGRAM)
    shutil.copytree(PROJECT_CONF, into / "conf", dirs_exist_ok=True)
    print(f"wrote {packaged_source(into)} and {into / 'prepare.py'}")
