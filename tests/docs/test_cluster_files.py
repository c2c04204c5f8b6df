"""The files in docs/cluster/: the YAML and shell can be parsed, and the commands exist."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pnfrec_dist.cli import parse_train_settings

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster"


@pytest.mark.parametrize("file", sorted(CLUSTER.glob("*.yaml")), ids=lambda p: p.name)
def test_yaml_parses_and_shares_the_loopback_alone(file: Path) -> None:
    documents = list(yaml.safe_load_all(file.read_text()))
    assert documents and all(isinstance(document, dict) for document in documents)
    for service in documents[0].get("services", {}).values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("file", sorted(CLUSTER.glob("*.sh")), ids=lambda p: p.name)
def test_shell_parses_and_says_how_it_is_used(file: Path) -> None:
    assert subprocess.run(["sh", "-n", file], check=False).returncode == 0
    done = subprocess.run(["sh", file], capture_output=True, text=True, check=False, env={"HEAD": "127.0.0.1"})
    assert done.returncode == 2 and "usage" in done.stderr


def test_the_command_shown_is_one() -> None:
    text = (CLUSTER.parent / "cluster.md").read_text()
    shown = text.split("python -m pnfrec_dist.train ")[1].split("```")[0].replace("\\\n", " ")
    settings = parse_train_settings(shown.replace("<head>", "head").split())
    assert settings.min_workers == 2 and settings.num_gpus == 4
