"""Opens a trained model by a name: a run's directory, a checkpoint, or a name in MLflow."""

import tempfile
from pathlib import Path

from pnfrec_dist.config.inference_settings import RecommendSettings
from pnfrec_dist.config.mappings import override
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.artifact import IN_MLFLOW, MODEL_DIRECTORY, Exported, load_exported, of_checkpoint
from pnfrec_dist.inference.recommender import require_gamma
from pnfrec_dist.training.checkpoint import COMMITTED, STATE, read_state, stored_state
from pnfrec_dist.training.checkpoint_manager import checkpoint_path, newest_usable
from pnfrec_dist.training.run_directory import RUN_FILE

MLMODEL = "MLmodel"
WAYS = (
    "give a run's directory (runs/<run>), one of its checkpoints, an MLflow run id, models:/<name>/<version>, "
    "models:/<name>@<alias> or the name of a registered model"
)


def open_trained(reference: str, data_dir: str) -> Exported:
    """The model of a run's directory (its exported model, else its best checkpoint), of a model directory in MLflow's
    format, of a checkpoint, or of a name that tracking/model_registry.py finds.

    data_dir: directory of prepared data sets; a checkpoint needs the data set on which it was trained, for the catalog.
    Raises InputError that names what is missing, damaged or does not match.
    """
    with tempfile.TemporaryDirectory(prefix="pnfrec-") as scratch:
        directory = trained_directory(reference, Path(scratch))
        if not (directory / MLMODEL).is_file():
            return _from_checkpoint(directory, data_dir)
        try:
            return load_exported(directory / IN_MLFLOW)
        except InputError as error:
            raise InputError(f"{reference}: {str(error).replace(f'{directory}/', '')}") from error


def open_with_data(settings: RecommendSettings) -> tuple[Exported, PreparedData]:
    """The model, and the data set for whose users it makes lists. Raises InputError also if they do not fit."""
    trained = open_trained(settings.run, settings.data_dir)
    data = open_prepared(Location(settings.data_dir) / (settings.dataset or trained.settings.dataset))
    if data.manifest.threshold != trained.threshold:
        raise InputError(
            f"in {data.directory}, a like has relevance >= {data.manifest.threshold:g}, for the model >= "
            f"{trained.threshold:g}; prepare the data with the same feedback.threshold"
        )
    require_gamma(trained.model, trained.gamma(settings.gamma))
    return trained, data


def trained_directory(reference: str, scratch: Path) -> Path:
    """The directory of the model (with MLMODEL) or of the checkpoint. A model in MLflow is copied into `scratch`.

    Raises InputError like open_trained.
    """
    directory = _local_directory(reference)
    if directory is not None:
        return directory
    # MLflow takes seconds to import and is not needed for a directory.
    from pnfrec_dist.tracking.address import tracking_uri
    from pnfrec_dist.tracking.model_registry import download, model_location

    uri = tracking_uri()
    return download(model_location(reference, uri), scratch, uri)


def _local_directory(reference: str) -> Path | None:
    """None if MLflow must be asked."""
    if not reference.strip():
        raise InputError(f"the name of a model is empty; {WAYS}")
    directory = Path(reference).expanduser()
    if not directory.is_dir():
        if directory.is_file() or ("/" in reference and not reference.startswith(("models:/", "runs:/"))):
            raise InputError(f"there is no directory {reference!r}; {WAYS}")
        return None
    if (directory / MLMODEL).is_file() or (directory / STATE).is_file() or (directory / COMMITTED).is_file():
        return directory
    if not (directory / RUN_FILE).is_file():
        raise InputError(f"{directory} is neither a run, a checkpoint nor a model; {WAYS}")
    if (directory / MODEL_DIRECTORY / MLMODEL).is_file():
        return directory / MODEL_DIRECTORY
    path, problems = best_checkpoint(directory)
    if path is None:
        why = f" ({problems[0].partition(';')[0]})" if problems else ""
        raise InputError(f"{directory} has no model and no complete checkpoint{why}; name another run")
    return path


def best_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint of a run's best epoch so far, and the problems of damaged ones."""
    path, problems = newest_usable(run_dir)
    if path is None:
        return None, problems
    best = stored_state(path)["train_state"]["best_steps"]
    return checkpoint_path(run_dir, best) if best else path, problems


def _from_checkpoint(directory: Path, data_dir: str) -> Exported:
    state = read_state(directory)
    settings = override(Settings(), state["settings"], str(directory / STATE))
    data = open_prepared(Location(data_dir) / settings.dataset)
    if data.manifest.digest != state["data_digest"]:
        raise InputError(
            f"{directory} was trained on another build of {settings.dataset!r} than {data.directory}; say where that "
            "build is with --data-dir, or name the run's exported model"
        )
    return of_checkpoint(directory, settings, data)
