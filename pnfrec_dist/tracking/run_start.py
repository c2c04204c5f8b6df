"""The opening of a run in MLflow: its name, settings, data and code."""

import contextlib
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.schema import Manifest
from pnfrec_dist.files.locations import Location
from pnfrec_dist.tracking.run_name import run_name

PACKAGES = ("torch", "ray", "pyspark", "mlflow-skinny", "pyarrow", "numpy", "pnfrec-dist")
"""Packages whose versions are recorded. MLflow's full package and its server need the same version of mlflow-skinny."""
MAX_DIGEST = 36


@dataclass(frozen=True)
class Opening:
    """What MLflow records of a run at its start."""

    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    manifest: Manifest
    data_dir: Location
    parent: str = ""
    """key of the run that this one is part of"""


def opening_of_training(
    settings: Settings, manifest: Manifest, data_dir: Location, name: str = "", parent: str = ""
) -> Opening:
    """name: default run_name(settings)."""
    name = name or run_name(settings)
    tags = {"kind": "training", "model": settings.model, "seed": str(settings.seed)}
    tags["mlflow.source.name"] = "python -m pnfrec_dist.train"
    params = {k: str(v) for k, v in flatten(to_mapping(settings)).items()}
    return Opening(settings.experiment, name, tags, params, manifest, data_dir, parent)


def origin_tags(manifest: Manifest) -> dict[str, str]:
    """Tags that say which data and code a run uses."""
    tags = {"dataset": manifest.dataset, "data_digest": manifest.digest}
    tags["versions"] = _versions(PACKAGES)
    tags["mlflow.source.type"] = "LOCAL"
    commit = git_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def git_commit() -> str:
    """The commit of the code that runs, with "-dirty" if the work tree has changes; empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def code_versions() -> str:
    """The commit and the packages that a reader may want to know."""
    return f"{(git_commit() or 'no repository')[:12]}, {_versions(('torch', 'ray', 'mlflow-skinny', 'pyspark'))}"


def _versions(packages: Sequence[str]) -> str:
    """Versions of those packages that are installed (training needs no Spark), and of Python."""
    found = []
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name.removesuffix('-skinny')} {metadata.version(name)}")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def dataset_input(manifest: Manifest, data_dir: Location) -> dict[str, str]:
    """The data set as MLflow describes an input."""
    return {
        "name": manifest.dataset,
        "digest": manifest.digest[:MAX_DIGEST],
        "source": json.dumps({"uri": data_dir.uri}),
        "profile": json.dumps(manifest.counts),
    }
