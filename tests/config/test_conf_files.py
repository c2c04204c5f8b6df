"""YAML in conf/: where it is found, and what is wrong with it."""

from pathlib import Path

import pytest

from pnfrec_dist.config.conf_files import conf_content, conf_names, load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError


def test_every_shipped_yaml_loads() -> None:
    for name in conf_names("dataset"):
        load_conf("dataset", name, DatasetSettings())
    for kind in ("model", "train"):
        for name in conf_names(kind):
            load_conf(kind, name, Settings())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """conf/train/ of the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/train").mkdir(parents=True)
    return tmp_path / "conf/train"


def test_the_current_directory_comes_first(own: Path) -> None:
    shipped = load_conf("train", "ml1m", Settings())
    (own / "ml1m.yaml").write_text("epochs: 3\n")
    (own / "mine.yaml").write_text("epochs: 4\n")
    assert load_conf("train", "ml1m", Settings()).epochs == 3 != shipped.epochs
    assert {"mine", "ml1m", "default"} <= set(conf_names("train"))
    assert load_conf("train", str(own / "mine.yaml"), Settings()).epochs == 4, "a path does as well"
    assert conf_content("train", "mine") == {"epochs": 4} and conf_content("train", "nothing") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: 7\ndataset: x\n", "'dataset' is set by its flag (--dataset)"),
        ("epochs: [1", "mine.yaml is not YAML: "),
        ("epoch: 3\n", "mine.yaml: unknown setting 'epoch'; did you mean 'epochs'?"),
        ("- 1\n", "mine.yaml: the file must be a mapping"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(own: Path, content: str, said: str) -> None:
    (own / "mine.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        load_conf("train", "mine", Settings())
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mime", "did you mean 'mine'"),
        ("../train/mine", "give a name of conf/train/, or the path"),
        ("other.yaml", "there is no such file"),
    ],
)
def test_a_file_that_is_not_there_is_named(own: Path, name: str, said: str) -> None:
    (own / "mine.yaml").write_text("epochs: 4\n")
    with pytest.raises(InputError, match=said):
        load_conf("train", name, Settings())


def test_a_file_that_cannot_be_read_is_named(own: Path) -> None:
    """A directory, a link to nothing: the project's own file must not be used instead without a word."""
    (own / "ml1m.yaml").mkdir()
    with pytest.raises(InputError, match=r"conf/train/ml1m.yaml cannot be read \(Is a directory\)"):
        load_conf("train", "ml1m", Settings())
    (own / "ml1m.yaml").rmdir()
    (own / "ml1m.yaml").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"conf/train/ml1m.yaml cannot be read \(No such file"):
        load_conf("train", "ml1m", Settings())


def test_a_key_that_is_given_twice_is_refused(own: Path) -> None:
    (own / "mine.yaml").write_text("epochs: 4\ntrain: {patience: 3}\nepochs: 5\n")
    with pytest.raises(InputError, match="'epochs' is given twice"):
        load_conf("train", "mine", Settings())
