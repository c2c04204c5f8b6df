"""A training on the tiny data whose model is in MLflow."""

from dataclasses import replace
from pathlib import Path

from helpers.tiny_training import SETTINGS, trained
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.inference.artifact import of_checkpoint
from pnfrec_dist.inference.pyfunc import save_model
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import opening_of_training
from pnfrec_dist.tracking.spool import FINISHED
from pnfrec_dist.training.run_directory import Run


def tracked_run(directory: Path, data: PreparedData, uri: str, seed: int) -> Path:
    """A training whose model is in MLflow; the run's directory."""
    settings = replace(SETTINGS, seed=seed)
    run = Run(directory / f"run-{seed}", to_mapping(settings), data.manifest.digest)
    run.write()
    tracked = TrackedRun(run.directory, run.key, uri, print)
    tracked.start(opening_of_training(settings, data.manifest, data.directory))
    save_model(run.directory / "model", of_checkpoint(trained(data, settings, run.directory), settings, data))
    tags = {"model": settings.model, "dataset": settings.dataset}
    tracked.log_model("model/1", run.directory / "model", tags, 1, "")
    tracked.close(FINISHED)
    assert not tracked.spool.unsent
    return run.directory
