"""A reproduction: runs the planned trainings that have no result, and reports on all.

runs/reproduce-<dataset>/            run.json, run.lock, tracking.jsonl of the parent run in MLflow
runs/reproduce-<dataset>/<run>/      each training, as `python -m pnfrec_dist.train` writes it
runs/reproduce-<dataset>/report/     written by report.py
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pnfrec_dist.cli import EXIT_INTERRUPTED
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.experiments.comparison import Comparison, Recorded
from pnfrec_dist.experiments.missing_trainings import Missing, described_plan, recorded, still_missing
from pnfrec_dist.experiments.paper_figures import published_figures
from pnfrec_dist.experiments.report import About, headline_markdown, missing_markdown, write_report
from pnfrec_dist.experiments.reproduction_options import MODELS, Options
from pnfrec_dist.experiments.reproduction_plan import Training
from pnfrec_dist.experiments.tracked_training import WAY_OUT
from pnfrec_dist.experiments.training_plan import open_data
from pnfrec_dist.files.atomic import writing
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.tracking.address import tracking_uri
from pnfrec_dist.tracking.run import TrackedRun, model_name
from pnfrec_dist.tracking.run_start import Opening, code_versions
from pnfrec_dist.tracking.spool import FAILED, FINISHED, KILLED, SCORE_TAG
from pnfrec_dist.training.run_directory import RUN_FILE, Run, read_run, training_key


def planned_states(trainings: Sequence[Training], data_digest: str) -> str:
    """The table of a dry run: each training has a result, is to be trained, or equals one that is."""
    missing = {training_key(training.settings): training for training in still_missing(trainings, data_digest)}
    rows = []
    for training in trainings:
        twin = missing.get(training_key(training.settings), training)
        state = "has a result" if recorded(training, data_digest) is not None else "to be trained"
        rows.append([training.name, state if twin is training else f"equals {twin.name}"])
    return text_table(["training", "state"], rows, "<<")


def uneven_selection(trainings: Sequence[Training], *, has_points: bool) -> str:
    """A warning if epochs are chosen by many points for some models and by last interactions for others; else empty."""
    by_points, by_last = list[str](), list[str]()
    for training in trainings:
        select_on = training.settings.evaluation.select_on
        names = by_points if select_on == "points" or (select_on == "auto" and has_points) else by_last
        names.append(training.settings.model)
    if not (by_points and by_last):
        return ""
    points, last = (", ".join(dict.fromkeys(names)) for names in (by_points, by_last))
    way_out = "--evaluation.select-on points (or last) gives all the same"
    return f"epochs of {points} are chosen by many points, those of {last} by last interactions; {way_out}"


def reproduce(options: Options, trainings: Sequence[Training]) -> int:
    """Runs the missing trainings, reports, and returns the exit code. Raises InputError, and RunError for failures."""
    published_figures(options.dataset)  # finds a file that cannot be read early
    data, uri = open_data(trainings[0].settings), tracking_uri()
    digest = data.manifest.digest
    if warning := uneven_selection(trainings, has_points=data.has_points):
        print(f"WARNING: {warning}", file=sys.stderr)
    if trainings[0].settings.dry_run:
        print(planned_states(trainings, digest))
        missing = still_missing(trainings, digest)
        if missing:
            print(described_plan(missing, data, options.at_a_time))
        print(f"dry run: nothing was trained; {len(missing)} trainings are missing")
        return 0
    if options.report_only:
        with writing(f"to {options.directory}", WAY_OUT):
            page = write(options, data, trainings, [])
        if page is None:
            raise InputError(f"there is no result in {options.directory} yet; run the command without --report-only")
        print(page)
        return 0
    parent = _parent(options, digest)
    with contextlib.ExitStack() as stack:
        with writing(f"to {parent.directory}", WAY_OUT):
            parent.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(parent.locked(way_out="choose another --name"))
            parent.write()
        tracked = TrackedRun(parent.directory, parent.key, uri, print)
        tracked.start(_opening(trainings[0].settings, data, options))
        status = FAILED

        def report(problems: list[str]) -> Path | None:
            with writing(f"to {parent.directory}", WAY_OUT):
                page = write(options, data, trainings, problems)
            _tell(options, data, trainings, tracked)
            return page

        try:
            to_train = Missing(trainings, data, uri, parent.key, report)
            went_on, problems = to_train.run(options.at_a_time), to_train.problems
            page = report(problems)
            status = KILLED if not went_on else FAILED if problems else FINISHED
        except KeyboardInterrupt:
            status = KILLED
            print("stopped; the same command continues, --report-only reports the existing results", flush=True)
            raise
        finally:
            tracked.close(status)
    done = sum(recorded(training, digest) is not None for training in trainings)
    print(f"\ntrainings with a result: {done} of {len(trainings)}{f'; report: {page}' if page else ''}")
    print(f"MLflow run {tracked.run_id or '(not known yet)'}; see it with: make mlflow-ui (or: pnfrec tracking ui)")
    if not went_on:
        print("stopped; run the same command again to continue")
        return EXIT_INTERRUPTED
    if problems:
        raise RunError(f"{len(problems)} of {len(trainings)} trainings failed: {'; '.join(problems)}")
    return 0


def _parent(options: Options, data_digest: str) -> Run:
    """The run of the reproduction itself, existing or new."""
    if not (options.directory / RUN_FILE).exists():
        return Run(options.directory, {"reproduces": options.dataset}, data_digest)
    try:
        parent = read_run(options.directory)
    except InputError as error:
        raise InputError(f"{str(error).partition(';')[0]}; fix it, or choose another --name") from error
    if parent.settings.get("reproduces") != options.dataset or parent.data_digest != data_digest:
        raise InputError(f"{options.directory} belongs to other data; choose another --name")
    return parent


def _opening(settings: Settings, data: PreparedData, options: Options) -> Opening:
    tags = {"kind": "reproduction", "mlflow.source.name": "python -m pnfrec_dist.reproduce"}
    name = options.directory.name.replace("-", " ")
    return Opening(settings.experiment, name, tags, {}, data.manifest, data.directory)


def write(options: Options, data: PreparedData, trainings: Sequence[Training], problems: Sequence[str]) -> Path | None:
    """Writes the report of the existing results; returns the path of report.html, or None without results."""
    found = _found(trainings, data.manifest.digest)
    if not found:
        return None
    curves = {weight: [r for r in found if r.weight == weight] for weight in options.curves}
    has_others = not set(options.models) <= set(MODELS)
    about = About(
        title=f"{options.dataset}: " + ("comparison of models" if has_others else "the paper's experiments"),
        command=_command(options),
        manifest=data.manifest,
        code=code_versions(),
        planned=len(trainings),
        recorded=len(found),
        problems=problems,
        has_other_models=has_others,
    )
    curves = {weight: runs for weight, runs in curves.items() if runs}
    return write_report(options.directory / "report", about, _comparison(found, options), curves)


def _tell(options: Options, data: PreparedData, trainings: Sequence[Training], tracked: TrackedRun) -> None:
    """Logs to MLflow: the report, the table as description, means as metrics, and the model that validated best."""
    found = _found(trainings, data.manifest.digest)
    if not found:
        return
    comparison = _comparison(found, options)
    number = sum(record["key"].startswith("report/") for record in tracked.spool.records)
    tracked.log_directory(f"report/{number}", options.directory / "report", "report")
    parts, where = [], "Full report: `report/report.html` among the artifacts."
    if comparison.runs:
        parts, where = [headline_markdown(comparison)], f"Mean ± SD over {comparison.seeds}. {where}"
    parts += [missing_markdown(len(trainings), len(found)), where]
    tags = {"models": " ".join(options.models), "flags": shlex.join(options.flags)}
    tags["seeds"] = comparison.seeds.partition(" seed")[0] if comparison.runs else str(len(options.seeds))
    tags["mlflow.note.content"] = "\n\n".join(part for part in parts if part)
    tracked.log_tags(f"description/{number}", tags)
    spreads = comparison.spreads()
    means = {f"{model}/{metric}": s.mean for model, metrics in spreads.items() for metric, s in metrics.items()}
    tracked.log_metrics(f"means/{number}", means, number)
    exported = [run for run in found if run.has_model]
    if exported:
        best = max(exported, key=lambda run: run.best_validation)
        what = f"Models of `{options.dataset}` that validated best; `best` is the best of them on the same data."
        tags = {"model": best.model, "seed": str(best.seed), "data_digest": data.manifest.digest}
        tags |= {best.weight: f"{best.value:g}"} if best.weight else {}
        tags[SCORE_TAG] = repr(best.best_validation)
        tracked.register(f"best/{number}", best.key, model_name("pnfrec-dist", options.dataset), what, tags)


def _found(trainings: Sequence[Training], data_digest: str) -> list[Recorded]:
    return [found for training in trainings if (found := recorded(training, data_digest)) is not None]


def _comparison(found: Sequence[Recorded], options: Options) -> Comparison:
    """The models of the table, in the order of --models."""
    rows = {model: [r for r in found if r.model == model and not r.weight] for model in options.models}
    return Comparison({model: runs for model, runs in rows.items() if runs}, published_figures(options.dataset))


def _command(options: Options) -> str:
    curves = [f"--{weight}s {' '.join(f'{value:g}' for value in values)}" for weight, values in options.curves.items()]
    parts = [f"--dataset {options.dataset}", f"--seeds {len(options.seeds)}", f"--models {' '.join(options.models)}"]
    if options.directory.parent != Path("runs").resolve():
        parts.append(f"--output-dir {shlex.quote(str(options.directory.parent))}")
    if options.directory.name != f"reproduce-{options.dataset}":
        parts.append(f"--name {options.directory.name}")
    return " ".join(["python -m pnfrec_dist.reproduce", *parts, *curves, *map(shlex.quote, options.flags)])
