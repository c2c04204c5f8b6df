"""YAML files in conf/: where they are found, what they may contain, and how they override defaults."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pnfrec_dist.config.mappings import override
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError, nearest, one_line

T = TypeVar("T")

CHOSEN_BY_FLAG = {"dataset", "model", "config", "dry_run", "resume"}
"""Settings that no file in conf/train/ or conf/model/ may contain."""

_ROOT = Path(__file__).resolve().parents[2]
PROJECT_CONF = _ROOT / "pnfrec_dist" / "conf" if (_ROOT / "pnfrec_dist" / "conf").is_dir() else _ROOT / "conf"
"""conf/ of the project: in the installed package, or at the top of the repository."""


def load_conf(kind: str, name: str, base: T) -> T:
    """`base` with the values of conf/<kind>/<name>.yaml; ./conf is searched before the project's conf.

    kind: "dataset", "model" or "train"; for "train", `name` may also be a path that ends in .yaml. Raises InputError
    for an unknown name, with the nearest known one.
    """
    path = _conf_file(kind, name)
    if path is not None:
        content = _yaml(path)
        if isinstance(content, dict) and kind != "dataset":
            content = {key: value for key, value in content.items() if (kind, key) != ("train", "model")}
            for key in CHOSEN_BY_FLAG & content.keys():
                raise InputError(f"{path}: {key!r} is set by its flag (--{key.replace('_', '-')}), not in a file")
        return override(base, {} if content is None else content, str(path))
    what = "config" if kind == "train" else kind
    if kind == "train" and "/" in name:
        raise InputError(f"--config is {name!r}; give a name of conf/train/, or the path of a file that ends in .yaml")
    own = f"write conf/{kind}/{name}.yaml, or name another one; " if re.fullmatch(r"[\w.-]+", name) else ""
    raise InputError(f"unknown {what} {name!r}; {own}{nearest(name, conf_names(kind))}")


def conf_content(kind: str, name: str) -> dict[str, Any]:
    """The mapping in conf/<kind>/<name>.yaml; empty if there is no such file. Raises InputError for other content."""
    path = _conf_file(kind, name)
    content = {} if path is None else _yaml(path) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path} must be a mapping, not {content!r}")
    return content


def _conf_file(kind: str, name: str) -> Path | None:
    if kind == "train" and name.endswith(".yaml"):
        if not Path(name).is_file():
            raise InputError(f"--config is {name!r}, and there is no such file; give a name of conf/train/, or a path")
        return Path(name)
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    paths = [directory / kind / f"{name}.yaml" for directory in (Path("conf"), PROJECT_CONF)]
    with _readable(paths[0]):
        return next((path for path in paths if os.path.lexists(path)), None)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct it or remove it") from error


def _yaml(path: Path) -> Any:
    try:
        with _readable(path):
            return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {one_line(str(error))}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML itself would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def train_config(dataset: str) -> str:
    """The file of conf/train/ that a training on the data set uses unless --config names another."""
    return dataset if dataset in conf_names("train") else "default"


def settings_from_conf(dataset: str, model: str = "", config: str = "", *, any_model: bool = False) -> Settings:
    """conf/model/<model>.yaml overrides conf/train/<config>.yaml, which overrides the defaults of config/settings.py.

    config: empty: the file of the data set. model: empty: the one that the file in conf/train/ names, else the default.
    A file in conf/train/ that names its model overrides conf/model/<model>.yaml instead. any_model: such a file may be
    used for another model too. That model's file then overrides it, except for loss weights above 0 in both.
    """
    config = config or train_config(dataset)
    named = conf_content("train", config).get("model", "")
    if not isinstance(named, str):
        raise InputError(f"conf/train/{config}.yaml: model is {named!r}; it must be a name of conf/model/")
    model = model or named or Settings.model
    if not named:
        settings = load_conf("model", model, load_conf("train", config, Settings()))
    elif model == named:
        settings = load_conf("train", config, load_conf("model", model, Settings()))
    elif any_model:
        base = load_conf("train", config, Settings())
        settings = load_conf("model", model, base)
        weights = {name: getattr(base.loss, name) for name in ("alpha", "beta")}
        kept = {name: value for name, value in weights.items() if value and getattr(settings.loss, name)}
        settings = dataclasses.replace(settings, loss=dataclasses.replace(settings.loss, **kept))
    else:
        raise InputError(f"--config {config} is for --model {named}, not {model}; leave out --model")
    return dataclasses.replace(settings, dataset=dataset, model=model, config=config)


def conf_names(kind: str) -> list[str]:
    """Names of the YAML files of one kind."""
    found = {p.stem for d in (Path("conf"), PROJECT_CONF) for p in (d / kind).glob("*.yaml")}
    return sorted(found)
