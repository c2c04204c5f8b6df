"""The paper's experiments on one data set: which trainings they take, and running those that have no result yet.

runs/reproduce-<dataset>/            run.json, run.lock, tracking.jsonl of the parent in MLflow
runs/reproduce-<dataset>/<run>/      each training, as `python -m pnfrec_dist.train` leaves it
runs/reproduce-<dataset>/report/     what report.py makes of them
"""

import dataclasses
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.cli import EXIT_INTERRUPTED, conf_names, parse_train_settings
from pnfrec_dist.config import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.driver import checked_plan, open_data, train
from pnfrec_dist.errors import InputError, RunError, nearest
from pnfrec_dist.experiment import Options
from pnfrec_dist.launch import ray_session
from pnfrec_dist.progress import HEADLINE, duration
from pnfrec_dist.recorded import Comparison, Recorded, published_figures
from pnfrec_dist.report import About, headline_markdown, write_report
from pnfrec_dist.runs import RUN_FILE, Run, choose_run, finished_run, read_run
from pnfrec_dist.sender import FAILED, FINISHED, KILLED
from pnfrec_dist.tracking import Opening, TrackedRun, code_versions, tracking_uri
from pnfrec_dist.training.loop import FLOORS
from pnfrec_dist.training.result import read_result, read_test_users

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
        """Of the varied weight; nan without one."""
        return getattr(self.settings.loss, self.weight) if self.weight else math.nan


def planned(
    dataset: str,
    models: Sequence[str],
    seeds: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    directory: Path,
    flags: Sequence[str],
) -> list[Training]:
    """All trainings, in the order in which they run: the table seed by seed, then the curves seed by seed.

    curves: loss weight -> its values; flags: further flags of the training command. Raises InputError.
    """
    trainings = []
    rows = {model: _settings(dataset, model, directory, flags) for model in models}
    for seed in seeds:
        for model, settings in rows.items():
            name = f"{model} {dataset} seed {seed}"
            trainings.append(Training(dataclasses.replace(settings, seed=seed), name))
    for weight, values in curves.items():
        settings = _settings(dataset, CURVES[weight], directory, flags)
        for seed in seeds:
            for value in values:
                loss = dataclasses.replace(settings.loss, **{weight: value})
                name = f"{settings.model} {dataset} {weight} {value:g} seed {seed}"
                trainings.append(Training(dataclasses.replace(settings, seed=seed, loss=loss), name, weight))
    return trainings


def _settings(dataset: str, model: str, directory: Path, flags: Sequence[str]) -> Settings:
    if model in FLOORS:
        raise InputError(f"--models has {model!r}, which is not trained: the report has it in any case; leave it out")
    if model not in conf_names("model"):
        raise InputError(f"--models has {model!r}; {nearest(model, conf_names('model'))}")
    if {"--model", "--seed"} & {flag.partition("=")[0] for flag in flags}:
        raise InputError("--model and --seed are not flags of this command; say --models and --seeds")
    settings = parse_train_settings(["--dataset", dataset, "--model", model, "--output-dir", str(directory), *flags])
    if settings.resume != Settings.resume:
        raise InputError(f"--resume is {settings.resume!r}; this command always goes on, or say another --name")
    return settings


def recorded(training: Training, data_digest: str) -> Recorded | None:
    """What a training left, or None while it has no result. Raises InputError when that cannot be read."""
    run = finished_run(training.settings, data_digest)
    result = read_result(run.directory) if run is not None else None
    if run is None or result is None:
        return None
    settings, users = training.settings, read_test_users(run.directory)
    return Recorded(settings.model, settings.seed, result, users, run.key, training.weight, training.value)


def run_missing(trainings: Sequence[Training], data: PreparedData, uri: str, parent: str) -> tuple[bool, list[str]]:
    """Runs the trainings that have no result, on one Ray: (whether none was stopped, what became of those that failed).

    parent: key of the run that MLflow shows them under. One that fails is left out, the others go on.
    """
    digest, problems, started, done = data.manifest.digest, [], time.monotonic(), 0
    missing = [training for training in trainings if recorded(training, digest) is None]
    if not missing:
        return True, []
    with ray_session(missing[0].settings) as plan:
        for training in missing:
            checked_plan(training.settings, data, plan)
        print(checked_plan(missing[0].settings, data, plan), flush=True)
        for number, training in enumerate(missing, 1):
            if recorded(training, digest) is not None:  # a curve may pass through a model of the table
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
            found = "  ".join(f"{title} {test['metrics'].get(key, math.nan):.4f}" for title, key in HEADLINE)
            print(f"test, epoch {test['best_epoch']}: {found}", flush=True)
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
    digest = data.manifest.digest
    if trainings[0].settings.dry_run:
        for training in trainings:
            print(f"{training.name:<50}{'to be trained' if recorded(training, digest) is None else 'has its result'}")
        print("dry run: nothing was trained")
        return 0
    parent = _parent(options, digest)
    try:
        parent.directory.mkdir(parents=True, exist_ok=True)
        with parent.locked(way_out="say another --name"):
            parent.write()
            tracked = TrackedRun(parent.directory, parent.key, uri, print)
            tracked.start(_opening(options, trainings[0].settings, data))
            status, went_on, problems = FAILED, True, []
            try:
                if not options.report_only:
                    went_on, problems = run_missing(trainings, data, uri, parent.key)
                found = [entry for training in trainings if (entry := recorded(training, digest)) is not None]
                page = _report(options, data, found, len(trainings), problems, tracked) if found else None
                status = KILLED if not went_on else FAILED if problems else FINISHED
            except KeyboardInterrupt:
                status = KILLED
                raise
            finally:
                tracked.close(status)
    except OSError as error:
        way_out = "make room, or choose another --output-dir"
        raise InputError(f"cannot write to {parent.directory} ({error.strerror}); {way_out}") from error
    if page is None:
        raise InputError(f"there is no result in {options.directory} to report yet; run it without --report-only")
    print(f"\n{len(found)} of {len(trainings)} trainings have a result; report: {page}")
    print(f"MLflow run {tracked.run_id or '(not known yet)'}; see it with: make mlflow-ui")
    if not went_on:
        print("stopped; the same command goes on")
        return EXIT_INTERRUPTED
    return 1 if problems else 0


def _parent(options: Options, data_digest: str) -> Run:
    """The reproduction's own directory, found again or new."""
    if (options.directory / RUN_FILE).exists():
        parent = read_run(options.directory)
        if parent.data_digest != data_digest:
            raise InputError(f"{options.directory} is about other data than is prepared now; say another --name")
        return parent
    return Run(options.directory, {"reproduces": options.dataset}, data_digest)


def _opening(options: Options, settings: Settings, data: PreparedData) -> Opening:
    params = {"models": " ".join(options.models), "seeds": str(len(options.seeds))}
    params.update({weight: " ".join(map(str, values)) for weight, values in options.curves.items()})
    tags = {"kind": "reproduction", "mlflow.source.name": "python -m pnfrec_dist.reproduce"}
    name = options.directory.name.replace("-", " ")
    return Opening(settings.experiment, name, tags, params, data.manifest, data.directory)


def _report(
    options: Options,
    data: PreparedData,
    found: list[Recorded],
    planned: int,
    problems: Sequence[str],
    tracked: TrackedRun,
) -> Path:
    """Writes the report, and tells MLflow: files, the table as description, means as metrics, the best model's name."""
    comparison = Comparison(_by_model(found, options), published_figures(options.dataset))
    curves = {weight: [r for r in found if r.weight == weight] for weight in options.curves}
    about = About(
        title=f"{options.dataset}: the paper's experiments",
        command=_command(options),
        manifest=data.manifest,
        code=code_versions(),
        planned=planned,
        recorded=len(found),
        problems=problems,
    )
    directory = options.directory / "report"
    page = write_report(directory, about, comparison, {weight: runs for weight, runs in curves.items() if runs})
    number = str(time.time_ns())
    table = headline_markdown(comparison)
    tracked.log_directory(f"report/{number}", directory, "report")
    tracked.log_tags(f"description/{number}", {"mlflow.note.content": _description(comparison, table)})
    means = {
        f"{model}/{metric}": spread.mean
        for model, metrics in comparison.spreads().items()
        for metric, spread in metrics.items()
    }
    tracked.log_metrics(f"means/{number}", means, comparison.seeds)
    best = max(found, key=lambda run: run.best_validation)
    name = f"pnfrec-dist-{options.dataset}"
    what = f"The models of `{options.dataset}` that validated best; the alias `best` is the one of all so far."
    tags = {"model": best.model, "seed": str(best.seed), "validation_ndcg_p_at_10": f"{best.best_validation:.4f}"}
    tracked.register(f"best/{best.key}", best.key, name, what, tags)
    return page


def _by_model(found: Sequence[Recorded], options: Options) -> dict[str, list[Recorded]]:
    """Rows of the table in the order asked for."""
    rows = {model: [r for r in found if r.model == model and not r.weight] for model in options.models}
    return {model: runs for model, runs in rows.items() if runs}


def _description(comparison: Comparison, table: str) -> str:
    seeds = f"{comparison.seeds} seed{'s' if comparison.seeds != 1 else ''}"
    return f"{table}\n\nMean ± SD over {seeds}. All of it: `report/report.html` among the artifacts."


def _command(options: Options) -> str:
    curves = [f"--{weight}s {' '.join(f'{value:g}' for value in values)}" for weight, values in options.curves.items()]
    parts = [f"--dataset {options.dataset}", f"--seeds {len(options.seeds)}", f"--models {' '.join(options.models)}"]
    return " ".join(["python -m pnfrec_dist.reproduce", *parts, *curves, *map(shlex.quote, options.flags)])
