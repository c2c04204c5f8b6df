"""The name of a training in MLflow: model, data set, settings that differ from their defaults, seed."""

from typing import Any

from pnfrec_dist.config.conf_files import conf_names, load_conf, train_config
from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.training.run_directory import AUTO_MAY_CHANGE

SHORT = {
    "encoder.hidden_size": "d",
    "encoder.max_length": "l",
    "encoder.num_blocks": "blocks",
    "encoder.num_heads": "heads",
    "train.batch_size": "batch",
}
"""Setting -> its common short name. For all other settings, the part after the dot is used."""
MOST = 6
"""Maximum number of differences in a name."""


def run_name(settings: Settings, *always: str) -> str:
    """Such as "pnfrec ml1m d=231 bfloat16 seed 42".

    Compared with the defaults of the data set and the model (conf/train/, conf/model/). Settings that change only how
    a run is executed, such as workers and directories, are left out. A name holds at most MOST differences. always:
    settings to name even if they have their default.
    """
    chosen, default = flatten(to_mapping(settings)), flatten(to_mapping(_defaults(settings)))
    left_out = {*AUTO_MAY_CHANGE, "dataset", "model", "config", "seed", "experiment"}
    found = [_said(n, v) for n, v in chosen.items() if n in always or (n not in left_out and v != default[n])]
    more = [f"and {len(found) - MOST} more"] * (len(found) > MOST)
    return " ".join([settings.model, settings.dataset, *found[:MOST], *more, f"seed {settings.seed}"])


def _defaults(settings: Settings) -> Settings:
    defaults = load_conf("train", train_config(settings.dataset), Settings())
    return load_conf("model", settings.model, defaults) if settings.model in conf_names("model") else defaults


def _said(name: str, value: Any) -> str:
    short = SHORT.get(name, name.rpartition(".")[2])
    if isinstance(value, bool):
        return short if value else f"no-{short}"
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple):
        return f"{short}={','.join(map(str, value))}"
    return f"{short}={value:g}" if isinstance(value, float) else f"{short}={value}"
