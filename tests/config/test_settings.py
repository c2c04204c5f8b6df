import ast
import dataclasses
from pathlib import Path

import pytest

from pnfrec_dist.cli import parse_train_settings
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import flatten, override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"loss": {"alhpa": 1.0}}, "unknown setting 'loss.alhpa'; did you mean 'alpha'?"),
        ({"los": {}}, "unknown setting 'los'; did you mean 'loss'?"),
        ({"loss": 3}, "loss must be a mapping, not 3"),
        ({"epochs": "ten"}, "epochs is 'ten'; it must be a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"loss": {"alpha": -1.0}}, "loss.alpha is -1.0; it must be a finite number >= 0"),
        ({"evaluation": {"cutoffs": [10, "x"]}}, "cutoffs is 'x'"),
    ],
)
def test_wrong_yaml_names_file_key_and_value(mapping: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        override(Settings(), mapping, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert said in str(caught.value)


def test_settings_survive_the_way_through_plain_values() -> None:
    settings = parse_train_settings(["--loss.alpha", "0.3", "--evaluation.cutoffs", "1", "10", "--num-workers", "3"])
    assert override(Settings(), to_mapping(settings), "json") == settings


def test_where_raw_files_come_from_does_not_change_what_is_prepared() -> None:
    base = DatasetSettings()
    moved = dataclasses.replace(base, source=dataclasses.replace(base.source, url="https://example.org/x.zip"))
    other = dataclasses.replace(base, max_history=100)
    assert moved.prepared() == base.prepared()
    assert other.prepared() != base.prepared()


def test_every_setting_is_read_somewhere() -> None:
    """Each field is read as an attribute somewhere, not only in the check of its own class."""
    read = set()
    for package in ("pnfrec_dist", "spark_jobs"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            checks = {id(part) for node in functions if node.name == "__post_init__" for part in ast.walk(node)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in checks:
                    read.add(node.attr)
    for kind in (Settings(), DatasetSettings()):
        for name in flatten(to_mapping(kind)):
            assert name.rpartition(".")[2] in read, f"nothing reads {name}"
