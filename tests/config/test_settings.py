import ast
import dataclasses
from pathlib import Path

import pytest

from pnfrec_dist.cli import conf_names, load_conf, parse_train_settings
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import flatten, override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError

ROOT = Path(__file__).parents[2]


def test_yaml_lies_over_defaults_and_flags_over_yaml() -> None:
    assert parse_train_settings(["--model", "pnfrec"]).loss.alpha == 0.45
    assert parse_train_settings(["--model", "pnfrec", "--loss.alpha", "0.1"]).loss.alpha == 0.1
    assert parse_train_settings(["--model=sasrec_p"]).loss.alpha == 0.0


def test_train_yaml_follows_the_data_set_unless_chosen() -> None:
    assert parse_train_settings([]).config == "synthetic"
    assert parse_train_settings(["--dataset", "ml1m"]).config == "ml1m"
    assert parse_train_settings(["--dataset", "ml25m"]).config == "default"
    assert parse_train_settings(["--config", "default"]).train.batch_size == 500


@pytest.mark.parametrize(("dataset", "length"), [("ml1m", 50), ("ml20m", 50), ("toys", 25), ("kion", 25)])
def test_the_papers_data_sets_have_their_lengths(dataset: str, length: int) -> None:
    """l per side for models that read likes, 2 l for those that read all."""
    for model in ("pnfrec", "pnfrec_pn", "pnfrec_pc", "sasrec_p"):
        assert parse_train_settings(["--dataset", dataset, "--model", model]).encoder.positions == length
    for model in ("sasrec", "sasrec_c"):
        settings = parse_train_settings(["--dataset", dataset, "--model", model])
        assert settings.encoder.positions == 2 * length and settings.loss.alpha == 0
    assert settings.loss.beta > 0 and settings.contrastive.temperature == 0.1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", "pnfrek"], "'pnfrec'"),
        (["--config", "defautl"], "'default'"),
        (["--train.batchsize", "3"], "--train.batch-size"),
        (["--train.batch-size", "many"], "'many'"),
        (["--train.batch-size", "0"], "train.batch_size is 0"),
        (["--contrastive.similarity", "cos"], "cosine"),
        (["--encoder.num-heads", "5"], "encoder.num_heads is 5"),
        (["--evaluation.cutoffs", "5", "20"], "10 among them"),
        (["--num-workers", "0"], "num_workers is 0"),
        (["--epochs"], "--epochs"),
        (["stray"], "stray"),
        (["--optimizer.lr", "nan"], "optimizer.lr is nan"),
        (["--model", "../../etc/passwd"], "unknown model"),
        (["--train.compile", "True"], "--no-NAME"),
        (["--output-dir", "s3://bucket/runs"], "output_dir is 's3://bucket/runs'"),
        (["--stall-timeout", "inf"], "at most 30 days"),
        (
            ["--config", "default", "--train.accumulation", "501"],
            "from 1 to train.batch_size (500)",
        ),
        (["--loss.cross-entropy", "sampled"], "did you mean 'sampled_softmax'?"),
        (["--encoder.block", "sasreck"], "did you mean 'sasrec'?"),
        (["--encoder.block", "my.blocks:"], "encoder.block is 'my.blocks:'"),
        (["--loss.terms", "diversity"], "a term must read name=weight"),
        (["--loss.terms", "ce_main=2"], "a term beside those of loss.alpha and loss.beta"),
        (["--loss.terms", "diversity=0.1"], "loss.terms is 'diversity'"),
        (["--evaluation.measures", "hr"], "ndcg and others"),
        (["--encoder.history", "all"], "0 where encoder.history is all"),
    ],
)
def test_wrong_flags_are_one_line_that_names_value_or_way_out(args: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_train_settings(args)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_every_shipped_yaml_loads() -> None:
    for name in conf_names("dataset"):
        load_conf("dataset", name, DatasetSettings())
    for kind in ("model", "train"):
        for name in conf_names(kind):
            load_conf(kind, name, Settings())


def test_where_raw_files_come_from_does_not_change_what_is_prepared() -> None:
    base = DatasetSettings()
    moved = dataclasses.replace(base, source=dataclasses.replace(base.source, url="https://example.org/x.zip"))
    other = dataclasses.replace(base, max_history=100)
    assert moved.prepared() == base.prepared()
    assert other.prepared() != base.prepared()


def test_every_setting_is_read_somewhere() -> None:
    """Each field name stands as an attribute access outside its own definition."""
    read = set()
    for package in ("pnfrec_dist", "spark_jobs"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                in_config_check = path.name in ("config.py", "dataset_config.py")
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not in_config_check:
                    read.add(node.attr)
    for kind in (Settings(), DatasetSettings()):
        for name in flatten(to_mapping(kind)):
            assert name.rpartition(".")[2] in read, f"nothing reads {name}"
