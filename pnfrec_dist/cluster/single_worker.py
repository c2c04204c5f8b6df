"""A training with one worker, in this process and without Ray. It runs the same loop as Ray Train's workers."""

from pathlib import Path

import torch

from pnfrec_dist.cluster.worker_plan import WorkerPlan
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.distributed import World, torch_threads
from pnfrec_dist.errors import InputError, RunError, first_line
from pnfrec_dist.training.events import Refused
from pnfrec_dist.training.loop import Hooks, Phase, TrainLoop
from pnfrec_dist.training.run_directory import write_failure


class WorkerError(RunError):
    """The loop failed with an error that is not about input. A retry from the newest checkpoint may succeed."""


def run_here(
    settings: Settings, plan: WorkerPlan, data: PreparedData, run_dir: Path, hooks: Hooks, phase: Phase = "both"
) -> None:
    """Trains and tests in this thread. The hooks are called in this thread, too.

    Raises WorkerError if the loop fails. The loop is not started again here; the same command continues from the newest
    checkpoint.
    """
    threads = torch.get_num_threads() if plan.use_gpu else max(1, int(plan.cpus_per_worker))
    with torch_threads(threads):
        try:
            world = World(device=torch.device("cuda" if plan.use_gpu else "cpu"))
            TrainLoop(settings, data, run_dir, world, hooks).run(phase)
        except InputError as error:
            hooks.report(Refused(str(error)))
        except (RunError, BrokenPipeError):  # raised by a hook
            raise
        except Exception as error:
            what = first_line(error, with_class=True)
            raise WorkerError(f"the training failed: {what}{write_failure(run_dir, error)}") from error
