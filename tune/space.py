"""What a stage searches, and how: conf/tune/<stage>.yaml, checked before any trial starts."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pnfrec_dist.config.conf_files import conf_content, conf_names
from pnfrec_dist.config.mappings import override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError, nearest, require

Point = dict[str, Any]
"""Dotted name of a setting -> value."""

SEARCHES, SCHEDULERS = ("grid", "random", "optuna"), ("none", "asha")
SECTIONS = ("encoder", "loss", "sampled", "contrastive", "optimizer", "train")
"""Sections of the settings that can be searched."""
MOST_POINTS = 10_000
DIGITS = 12
"""Decimals of a value, so that 6 steps of 0.05 are 0.3."""


@dataclass(frozen=True)
class Parameter:
    """One setting that is searched: a list of values, or a range of numbers (whole if the ends are whole)."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    """0: any number in the range (for whole numbers: 1)"""
    log: bool = False

    @property
    def is_range(self) -> bool:
        return not self.values

    @property
    def is_whole(self) -> bool:
        """Whether the setting takes whole numbers."""
        return isinstance(self.low, int)

    def grid(self) -> list[Any]:
        """All values. Raises InputError for a range without a step."""
        if not self.is_range:
            return list(self.values)
        step = self.step or (1 if self.is_whole and not self.log else 0)
        if not step:
            raise InputError(
                f"{self.name} has no step, which a grid needs; add step, list the values, or use search: random"
            )
        count = round((self.high - self.low) / step) + 1
        require(count <= MOST_POINTS, self.name, count, f"at most {MOST_POINTS:,} values")
        return [rounded(self.low + place * step) for place in range(count)]


@dataclass(frozen=True)
class Stage:
    """The content of conf/tune/<name>.yaml."""

    name: str
    model: str
    parameters: tuple[Parameter, ...]
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: all combinations; random; optuna: tree-structured Parzen estimator, which learns from earlier trials"""
    num_samples: int = 30
    """number of trials of random and optuna"""
    scheduler: Literal["none", "asha"] = "none"
    """asha: trials that are not in the best third at the same epoch are stopped early"""
    grace_epochs: int = 5
    """asha: epochs before a trial may be stopped"""
    reduction: int = 3
    """asha: one of this many trials continues"""

    def grid(self) -> list[Point]:
        """All combinations. Raises InputError for a range without a step."""
        combinations = itertools.product(*(parameter.grid() for parameter in self.parameters))
        return [dict(zip((p.name for p in self.parameters), values, strict=True)) for values in combinations]

    def largest(self) -> Point:
        """The largest value of each numeric setting: about the point that needs the most memory."""
        ends = {p.name: p.values or (p.low, p.high) for p in self.parameters if p.name != "encoder.num_heads"}
        return {name: max(v) for name, v in ends.items() if all(isinstance(x, int | float) for x in v)}

    def described(self) -> str:
        """One line for people."""
        names = ", ".join(parameter.name for parameter in self.parameters)
        early = f", {self.scheduler} from epoch {self.grace_epochs}" if self.scheduler != "none" else ""
        return f"{self.model} over {names}; {self.search}, {self.num_trials} trials{early}"

    @property
    def num_trials(self) -> int:
        """All points of a grid, else num_samples."""
        if self.search == "grid":
            return math.prod(len(parameter.grid()) for parameter in self.parameters)
        return self.num_samples


def rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, DIGITS)


def load_stage(name: str, **chosen: Any) -> Stage:
    """chosen: fields that replace those of the file. Raises InputError that names the file and the key."""
    if name not in conf_names("tune"):
        raise InputError(f"unknown stage {name!r} (no conf/tune/{name}.yaml); {nearest(name, conf_names('tune'))}")
    where, content = f"conf/tune/{name}.yaml", conf_content("tune", name)
    space = content.pop("space", None)
    if not isinstance(space, dict) or not space:
        raise InputError(f"{where}: space must be a mapping from settings to values or ranges, not {space!r}")
    parameters = tuple(_parameter(str(key), value, where) for key, value in space.items())
    if "model" not in content:
        raise InputError(f"{where}: model is missing; {nearest('', conf_names('model'))}")
    hidden = {"name", "parameters"} & content.keys()
    if hidden:
        raise InputError(f"{where}: unknown setting {sorted(hidden)[0]!r}; known: model, search, num_samples, ...")
    stage = dataclasses.replace(override(Stage(name, "", parameters), content, where), **chosen)
    if stage.model not in conf_names("model"):
        raise InputError(f"{where}: model is {stage.model!r}; {nearest(stage.model, conf_names('model'))}")
    where = f"{where} with the flags given" if chosen else where
    require(stage.num_samples >= 1, f"{where}: num_samples", stage.num_samples, ">= 1")
    require(stage.grace_epochs >= 1, f"{where}: grace_epochs", stage.grace_epochs, ">= 1")
    require(stage.reduction >= 2, f"{where}: reduction", stage.reduction, ">= 2")
    if stage.search == "grid":
        count = math.prod(len(parameter.grid()) for parameter in stage.parameters)
        require(count <= MOST_POINTS, f"{where}: the grid", count, f"at most {MOST_POINTS:,} points")
    return stage


def _parameter(name: str, content: Any, where: str) -> Parameter:
    if name.partition(".")[0] not in SECTIONS or "." not in name:
        known = [f"{section}.{key}" for section in SECTIONS for key in to_mapping(getattr(Settings(), section))]
        raise InputError(f"{where}: {name!r} cannot be searched; {nearest(name, known)}")
    section, _, field = name.partition(".")
    default = getattr(getattr(Settings(), section), field, None)
    if isinstance(content, list) and content:
        for value in content:
            require(isinstance(value, int | float | str), f"{where}: {name}", value, "a number or a text")
        if isinstance(default, float):
            content = [float(_number(value, f"{where}: {name}")) for value in content]
        return Parameter(name, values=tuple(dict.fromkeys(content)))
    keys = {"low", "high", "step", "log"}
    if not isinstance(content, dict) or not {"low", "high"} <= content.keys():
        raise InputError(f"{where}: {name} is {content!r}; it must be a list of values, or {{low: ..., high: ...}}")
    if unknown := sorted(map(str, content.keys() - keys)):
        raise InputError(f"{where}: {name} has {unknown[0]!r}; {nearest(unknown[0], keys)}")
    low, high = (_number(content[key], f"{where}: {name}.{key}") for key in ("low", "high"))
    step, log = _number(content.get("step", 0), f"{where}: {name}.step"), content.get("log", False)
    require(low < high, f"{where}: {name}.high", high, f"above low ({low})")
    require(step >= 0 and (step == 0 or not log), f"{where}: {name}.step", step, "> 0, and left out if log is true")
    require(not log or low > 0, f"{where}: {name}.low", low, "> 0 if log is true")
    require(isinstance(log, bool), f"{where}: {name}.log", log, "true or false")
    if isinstance(default, float):
        low, high, step = float(low), float(high), float(step)
    else:
        for key, value in (("low", low), ("high", high), ("step", step)):
            require(isinstance(value, int), f"{where}: {name}.{key}", value, f"a whole number, as for {name}")
    steps = (high - low) / step if step else 0
    require(abs(steps - round(steps)) < 1e-6, f"{where}: {name}.step", step, f"a divisor of the range, {high - low:g}")
    return Parameter(name, low=low, high=high, step=step, log=log)


def _number(value: Any, name: str) -> float:
    if isinstance(value, str):  # YAML reads 1e-3 as text, because it has no point
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise InputError(f"{name} is {value!r}; it must be a number")


def with_point(settings: Settings, point: Point, where: str) -> Settings:
    """`settings` with the point's values. Raises InputError that names `where`."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        section, _, field = name.partition(".")
        nested.setdefault(section, {})[field] = value
    return override(settings, nested, where)


def require_space(stage: Stage, settings: Settings, points: Sequence[Point] = ()) -> None:
    """Raises InputError for an invalid point (of a grid: any); without points, for an invalid end of a range."""
    where = f"conf/tune/{stage.name}.yaml"
    points = stage.grid() if stage.search == "grid" else points
    for point in points:
        try:
            with_point(settings, point, where)
        except InputError as error:
            raise InputError(f"{error} (the space has {described(point)})") from error
    if points:
        return
    for parameter in stage.parameters:
        for value in parameter.values if parameter.values else (parameter.low, parameter.high):
            with_point(settings, {parameter.name: value}, where)


def described(point: Point) -> str:
    """hidden_size 64, lr 0.001."""
    return ", ".join(f"{name.rpartition('.')[2]} {_plain(value)}" for name, value in point.items())


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def names(stages: Sequence[Stage]) -> list[str]:
    """Names of all settings that the stages search."""
    return list(dict.fromkeys(parameter.name for stage in stages for parameter in stage.parameters))
