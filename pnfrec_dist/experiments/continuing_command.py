"""The command that continues an interrupted training."""

import shlex
from pathlib import Path

from pnfrec_dist.cli import command
from pnfrec_dist.config.conf_files import settings_from_conf
from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.experiments.final_training import MAY_DIFFER


def continuing_command(settings: Settings, run_dir: Path) -> str:
    """A line for the shell. Its flags are the settings that differ from the defaults in YAML files."""
    return f"{command('train')} {_flags(settings)} --resume {shlex.quote(str(run_dir))}"


def _flags(settings: Settings) -> str:
    chosen = flatten(to_mapping(settings))
    if settings.final:  # all else is as in that run
        base, flags = Settings(), [f"--dataset {settings.dataset}"]
        chosen = {name: value for name, value in chosen.items() if name in MAY_DIFFER - {"dataset"}}
    else:
        base = settings_from_conf(settings.dataset, settings.model, settings.config)
        flags = [f"--dataset {settings.dataset}", f"--model {settings.model}", f"--config {settings.config}"]
    default = flatten(to_mapping(base))
    for name, value in chosen.items():
        if value == default[name] or name in ("resume", "dry_run"):
            continue
        if isinstance(value, bool):
            group, dot, switch = name.rpartition(".")
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{switch}".replace("_", "-"))
        else:
            text = " ".join(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value]))
            flags.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(flags)
