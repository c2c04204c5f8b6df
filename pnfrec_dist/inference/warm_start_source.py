"""Opens the model with whose weights a training begins (--init-from)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference.trained_model import best_checkpoint, open_trained
from pnfrec_dist.training.checkpoint import STATE, stored_encoders, stored_rows, stored_state
from pnfrec_dist.training.run_directory import RUN_FILE
from pnfrec_dist.training.warm_start import Source, require_same_model


def open_source(reference: str, settings: Settings) -> Source:
    """The model of any name that open_trained takes, for a training with these settings.

    A run's directory or a checkpoint has the optimizer's state, other models have weights alone. Raises InputError if
    the model cannot be opened, or is of another kind or size than the settings say.
    """
    try:
        trained = open_trained(reference, settings.data_dir)
    except InputError as error:
        raise InputError(f"--init-from {reference}: {error}") from error
    if trained.settings.final and not settings.final:
        raise InputError(
            f"--init-from {reference}: that model was trained on all interactions, so validation and test would tell "
            f"nothing; begin with {trained.settings.final}, by which it was chosen"
        )
    table = trained.model.item_table.weight.detach()

    def rows(_: str, items: np.ndarray) -> Tensor:
        return table[torch.from_numpy(items)]

    encoders = {name: parameter.detach() for name, parameter in trained.model.encoders.named_parameters()}
    source = Source(reference, trained.settings, trained.raw_ids, encoders, rows, optimizer={})
    require_same_model(source, settings)
    path = _checkpoint(Path(reference))
    if path is None or stored_state(path)["data_digest"] != trained.data_digest:
        return source
    encoders, optimizer = stored_encoders(path)
    return Source(reference, trained.settings, source.raw_ids, encoders, stored_rows(path), optimizer)


def _checkpoint(directory: Path) -> Path | None:
    """The checkpoint of a run's directory, or the checkpoint that the name is; None for others."""
    if (directory / STATE).is_file():
        return directory
    return best_checkpoint(directory)[0] if (directory / RUN_FILE).is_file() else None
