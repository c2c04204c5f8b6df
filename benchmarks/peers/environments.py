"""An environment of its own for each peer: their pins contradict ours and each other's."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = {"rectools": ("RecTools", "rectools"), "replay": ("RePlay", "replay-rec")}
"""peer -> its name, and its package"""


@dataclass(frozen=True)
class Environment:
    """Where a peer's modules run."""

    name: str
    python: Path
    versions: str = ""
    """of the peer and of torch"""
    problem: str = ""
    """why the peer cannot be installed; then it is skipped"""


def environment(peer: str, directory: Path) -> Environment:
    """Makes the environment of <peer>.txt in `directory`, or finds it there."""
    place, requirements = directory.absolute() / peer, (HERE / f"{peer}.txt").read_text(encoding="utf-8")
    python, mark = place / "bin" / "python", place / "installed.txt"
    name, package = PEERS[peer]
    if not mark.is_file() or mark.read_text(encoding="utf-8") != requirements:
        print(f"installing {name} into {place} (minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        for line in requirements.split():  # torch first: a later line must not choose another build
            done = subprocess.run([python, "-m", "pip", "install", "--quiet", line], capture_output=True, text=True)
            if done.returncode:
                return Environment(name, python, problem=done.stderr.strip().splitlines()[-1])
        mark.write_text(requirements, encoding="utf-8")
    code = f"from importlib.metadata import version; print(version({package!r}), 'with torch', version('torch'))"
    versions = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return Environment(name, python, versions)
