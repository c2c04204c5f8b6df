"""The paper's experiments on one data set: which trainings they take, and running those that have no result yet.

runs/reproduce-<dataset>/            run.json, run.lock, tracking.jsonl of the parent in MLflow
runs/reproduce-<dataset>/<run>/      each training, as `python -m pnfrec_dist.train` leaves it
runs/reproduce-<dataset>/report/     what report.py makes of them
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import conf_names, parse_train_settings
from pnfrec_dist.config import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.driver import checked_plan, open_data, train
from pnfrec_dist.errors import InputError, RunError, nearest
from pnfrec_dist.launch import ray_session
from pnfrec_dist.progress import duration
from pnfrec_dist.reproduce import Options
from pnfrec_dist.runs import RUN_FILE, Run, choose_run, finished_run, read_run
from pnfrec_dist.sender import FAILED, FINISHED, KILLED
from pnfrec_dist.tracking import Opening, TrackedRun, tracking_uri
from pnfrec_dist.training.loop import FLOORS
from pnfrec_dist.training.result import Result, TestUsers, read_result, read_test_users

CURVES = {"alpha": "pnfrec_pn", "beta": "pnfrec"}
"""Loss weights that are varied -> the model whose other settings stay (Figure 2, and the same for beta)."""


@dataclass(frozen=True)
class Training:
    """One training of the plan."""

    settings: Settings
    name: str
    weight: str = ""
    """the loss weight that a curve varies, or "" for a row of the table"""

    @property
    def value(self) -> float:
        """Of the varied weight."""
        return getattr(self.settings.loss, self.weight)


@dataclass(frozen=True)
class Recorded:
    """A training that has its result."""

    training: Training
    run: Run
    result: Result
    users: TestUsers


def planned(
    dataset: str,
    models: Sequence[str],
    seeds: Sequence[int],
    curves: dict[str, Sequence[float]],
    directory: Path,
    flags: Sequence[str],
) -> list[Training]:
    """All trainings, in the order in which they run: the table seed by seed, then the curves seed by seed.

    curves: loss weight -> its values; flags: further flags of the training command. Raises InputError.
    """
    trainings = []
    for seed in seeds:
        for model in models:
            settings = _settings(dataset, model, seed, directory, flags)
            trainings.append(Training(settings, f"{model} {dataset} seed {seed}"))
    for weight, values in curves.items():
        model = CURVES[weight]
        for seed in seeds:
            for value in values:
                flag = [f"--loss.{weight}", repr(float(value))]
                settings = _settings(dataset, model, seed, directory, [*flags, *flag])
                name = f"{model} {dataset} {weight} {value:g} seed {seed}"
                trainings.append(Training(settings, name, weight))
    return trainings


def _settings(dataset: str, model: str, seed: int, directory: Path, flags: Sequence[str]) -> Settings:
    if model in FLOORS:
        raise InputError(f"--models has {model!r}, which is not trained: the report has it in any case; leave it out")
    if model not in conf_names("model"):
        raise InputError(f"--models has {model!r}; {nearest(model, conf_names('model'))}")
    own = ["--dataset", dataset, "--model", model, "--seed", str(seed), "--output-dir", str(directory)]
    settings = parse_train_settings([*own, *flags])
    if (settings.model, settings.seed, settings.dataset) != (model, seed, dataset):
        raise InputError("--model, --seed and --dataset cannot be given twice; say --models and --seeds")
    return dataclasses.replace(settings, resume="auto")


def recorded(trainings: Sequence[Training], data_digest: str) -> Iterator[tuple[Training, Recorded | None]]:
    """Each training with its result, or None where it has none yet."""
    for training in trainings:
        run = finished_run(training.settings, data_digest)
        result = read_result(run.directory) if run is not None else None
        if run is None or result is None:
            yield training, None
        else:
            yield training, Recorded(training, run, result, read_test_users(run.directory))


def run_missing(trainings: Sequence[Training], data: PreparedData, uri: str, parent: str) -> tuple[bool, list[str]]:
    """Runs the trainings that have no result, on one Ray: (whether none was stopped, what became of those that failed).

    parent: key of the run that MLflow shows them under. One that fails is left out, the others go on.
    """
    digest, problems, started, done = data.manifest.digest, [], time.monotonic(), 0
    missing = [training for training, found in recorded(trainings, digest) if found is None]
    if not missing:
        return True, []
    with ray_session(missing[0].settings) as plan:
        for training in missing:
            checked_plan(training.settings, data, plan)
        print(checked_plan(missing[0].settings, data, plan), flush=True)
        for number, training in enumerate(missing, 1):
            if finished_run(training.settings, digest) is not None:  # a curve may pass through a model of the table
                continue
            print(f"[{number}/{len(missing)}] {training.name}{_time_left(started, done, len(missing) - number + 1)}")
            try:
                run = choose_run(training.settings, digest)
                test = train(training.settings, plan, data, run, uri, training.name, parent)
            except (InputError, RunError) as error:
                problems.append(f"{training.name}: {error}")
                print(f"warning: {problems[-1]}", flush=True)
                continue
            if test is None:
                return False, problems
            done += 1
    return True, problems


def _time_left(started: float, done: int, left: int) -> str:
    if not done:
        return ""
    seconds = time.monotonic() - started
    return f"  ({duration(seconds)} so far, about {duration(seconds / done * left)} left)"


def reproduce(options: Options) -> int:
    """Runs what has no result yet, reports, and returns the exit code. Raises InputError."""
    trainings = planned(
        options.dataset, options.models, options.seeds, options.curves, options.directory, options.flags
    )
    data, uri = open_data(trainings[0].settings), tracking_uri()
    parent = _parent(options, data.manifest.digest)
    with parent.locked():
        parent.write()
        tracked = TrackedRun(parent.directory, parent.key, uri, print)
        tracked.start(_opening(options, trainings[0].settings, data))
        status = KILLED
        try:
            went_on, problems = run_missing(trainings, data, uri, parent.key)
            status = FINISHED if went_on and not problems else FAILED if went_on else KILLED
        finally:
            tracked.close(status)
    return 0 if status == FINISHED else 1


def _parent(options: Options, data_digest: str) -> Run:
    """The reproduction's own directory, found again or new."""
    if (options.directory / RUN_FILE).exists():
        return read_run(options.directory)
    return Run(options.directory, {"reproduces": options.dataset}, data_digest)


def _opening(options: Options, settings: Settings, data: PreparedData) -> Opening:
    params = {"models": " ".join(options.models), "seeds": str(len(options.seeds))}
    params.update({weight: " ".join(map(str, values)) for weight, values in options.curves.items()})
    tags = {"kind": "reproduction", "mlflow.source.name": "python -m pnfrec_dist.reproduce"}
    name = options.directory.name.replace("-", " ")
    return Opening(settings.experiment, name, tags, params, data.manifest, data.directory)
