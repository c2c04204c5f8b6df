"""python docs/settings_page.py: writes docs/settings.md from the settings' dataclasses and their docstrings."""

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

from pnfrec_dist.config.conf_files import settings_from_conf
from pnfrec_dist.config.inference_settings import EvaluateSettings, IndexSettings, PromoteSettings, RecommendSettings
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.files.tables import markdown_table
from spark_jobs.prepare import PrepareSettings

PAGE = Path(__file__).with_name("settings.md")
OPENING = """# Settings

This page is generated from the code: `make settings-page` writes it, and a test compares it.

A setting `a.b_c` is the flag `--a.b-c` of its command, and the key `b_c` under `a:` in a YAML file.
`--train.compile` turns a switch on, `--train.no-compile` turns it off. `--help` of a command shows the same list."""
SECTIONS = (
    (
        "Preparation",
        PrepareSettings(),
        "Of `python -m spark_jobs` (`pnfrec prep`). `conf/dataset/<name>.yaml` overrides the defaults. "
        "See [data.md](data.md).",
    ),
    (
        "Training",
        dataclasses.replace(settings_from_conf("mylogs"), dataset=Settings.dataset, config=Settings.config),
        "Of `python -m pnfrec_dist.train` (`pnfrec train`), and of `make reproduce` and `python -m tune`, which train. "
        "The defaults are those of the default model, for a data set without a file in `conf/train/`: they come from "
        "`conf/train/default.yaml` and `conf/model/pnfrec_plus.yaml`. Other models and data sets have files of their "
        "own there. Flags override the files.",
    ),
    (
        "Recommendation",
        RecommendSettings(),
        "Of `python -m pnfrec_dist.recommend` (`pnfrec recommend`). See [recommend.md](recommend.md).",
    ),
    (
        "Evaluation",
        EvaluateSettings(),
        "Of `python -m pnfrec_dist.evaluate` (`pnfrec evaluate`). See [evaluation.md](evaluation.md) "
        "and [recommend.md](recommend.md#dislikes).",
    ),
    (
        "Index",
        IndexSettings(),
        "Of `python -m pnfrec_dist.index` (`pnfrec index`). See [recommend.md](recommend.md#large-catalogs).",
    ),
    (
        "Promotion",
        PromoteSettings(),
        "Of `python -m pnfrec_dist.promote` (`pnfrec promote`). See [operate.md](operate.md#champion).",
    ),
)


def page() -> str:
    """The page, in Markdown."""
    parts = [OPENING]
    for title, settings, about in SECTIONS:
        parts += [f"## {title}", textwrap.fill(about, 100)]
        nested = [f for f in dataclasses.fields(settings) if dataclasses.is_dataclass(getattr(settings, f.name))]
        own = [f for f in dataclasses.fields(settings) if f not in nested]
        parts.append(_table(settings, own, ""))
        for field in nested:
            group = getattr(settings, field.name)
            parts += [f"### {field.name}", textwrap.fill(_first(type(group)), 100)]
            parts.append(_table(group, dataclasses.fields(group), f"{field.name}."))
    return "\n\n".join(parts) + "\n"


def _table(settings: Any, fields: typing.Iterable[dataclasses.Field[Any]], prefix: str) -> str:
    told, kinds = _docstrings(type(settings)), typing.get_type_hints(type(settings))
    rows = [
        [f"`{prefix}{f.name}`", _shown(getattr(settings, f.name)), _values(kinds[f.name]), told[f.name]] for f in fields
    ]
    return markdown_table(["setting", "default", "values", "meaning"], rows, "<<<<")


def _docstrings(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source, inherited fields included."""
    found, name = {}, ""
    for base in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
                found[name], name = " ".join(str(node.value.value).split()), ""
            else:
                name = ""
    return found


def _first(kind: type) -> str:
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def _shown(value: Any) -> str:
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value}`"


def _values(kind: Any) -> str:
    """What the flag takes, in words."""
    words = {int: "whole number", float: "number", str: "text", bool: "switch"}
    if kind in words:
        return words[kind]
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind) if choice)
    arguments = [choice for choice in typing.get_args(kind) if choice not in (types.NoneType, ...)]
    if typing.get_origin(kind) is tuple:
        return f"list: {_values(arguments[0])}"
    return " or ".join(_values(choice) for choice in arguments)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
