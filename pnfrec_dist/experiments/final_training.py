"""The final training (--final RUN): the model of an evaluated run, trained on all interactions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pnfrec_dist.cli import command, parse_flags
from pnfrec_dist.config.mappings import flatten, override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.training.events import EpochDone
from pnfrec_dist.training.result import Result, read_result
from pnfrec_dist.training.run_directory import AUTO_MAY_CHANGE, RUN_FILE, read_run

MAY_DIFFER = {"final", "dataset", "experiment", "init_from", *AUTO_MAY_CHANGE} - {"config"}
"""Settings that may differ from those of the evaluated run."""


def final_settings(run: str, args: Sequence[str]) -> Settings:
    """Those of the evaluated run, with the epochs and the weights of the scores that its validation has chosen; flags
    override what does not change the model.

    Raises InputError if the run has no result, or a flag would change the model.
    """
    directory = Path(run).expanduser().resolve()
    if not run.strip() or not directory.is_dir():
        raise InputError(f"--final is {run!r}, and there is no such directory; give that of a finished run")
    stored = read_run(directory)
    evaluated = override(Settings(), stored.settings, str(directory / RUN_FILE))
    if evaluated.final:
        raise InputError(f"--final {run}: that run is a final training itself; name {evaluated.final}, its run")
    result = read_result(directory)
    if result is None:
        raise InputError(f"--final {run}: that run has no result yet; finish it: {command('train')} --resume {run} ...")
    default = replace(_as_chosen(evaluated, result), final=str(directory), resume="auto", dry_run=False)
    settings = replace(parse_flags(Settings, default, args, command("train")), final=str(directory))
    given, own = flatten(to_mapping(settings)), flatten(to_mapping(default))
    for name in sorted(given.keys() - MAY_DIFFER):
        if given[name] != own[name]:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is {given[name]!r}, but --final trains as {run} did, with {own[name]!r}")
    return settings


def _as_chosen(evaluated: Settings, result: Result) -> Settings:
    """The settings with what validation has chosen."""
    encoder, evaluation, chosen = evaluated.encoder, evaluated.evaluation, result.weights
    if encoder.likes_share == "auto" and "likes_share" in chosen:
        encoder = replace(encoder, likes_share=chosen["likes_share"])
    if evaluation.gamma == "auto" and "gamma" in chosen:
        evaluation = replace(evaluation, gamma=chosen["gamma"])
    return replace(evaluated, epochs=result.best_epoch, encoder=encoder, evaluation=evaluation)


def chosen_by(settings: Settings) -> Result:
    """The result of the evaluated run of a final training. Raises InputError if it is gone."""
    found = read_result(Path(settings.final))
    if found is None:
        raise InputError(f"{settings.final}, by which this training was chosen, has no result any more")
    return found


def best_of(result: Result) -> EpochDone:
    """The epoch that an evaluated run has chosen."""
    return next(epoch for epoch in result.epochs if epoch.epoch == result.best_epoch)
