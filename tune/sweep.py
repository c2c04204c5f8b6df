"""A sweep: its stages one after another, each with what the earlier ones found, then one test of the winner.

runs/tune-<dataset>/                 sweep.json, and run.json, tracking.jsonl of the parent in MLflow
runs/tune-<dataset>/<stage>/         the same of the stage, its trials (records.py), report/
runs/tune-<dataset>/best.yaml        complete training settings of the winner
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pnfrec_dist.cli import EXIT_INTERRUPTED
from pnfrec_dist.config import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.driver import checked_plan, open_data, train
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.launch import ray_cluster
from pnfrec_dist.mappings import flatten, to_mapping
from pnfrec_dist.progress import duration, headline_table
from pnfrec_dist.runs import RUN_FILE, Run, read_run
from pnfrec_dist.sender import FAILED, FINISHED, KILLED
from pnfrec_dist.tracking import Opening, TrackedRun, tracking_uri
from pnfrec_dist.training.result import read_result
from tune.options import Options, base_settings
from tune.records import Record, best_of
from tune.report import best_yaml, stage_markdown, write_best, write_stage_report
from tune.space import Stage, described, with_point
from tune.stages import TrialPlan, plan_trials, run_stage

SWEEP_FILE = "sweep.json"
MAY_CHANGE = ("num_workers", "num_gpus", "ray_address", "data_dir", "output_dir", "dry_run", "experiment")
"""Settings that may differ when a sweep goes on."""


def run_sweep(options: Options, stages: Sequence[Stage]) -> int:
    """Runs what is missing of a sweep, reports, and returns the exit code. Raises InputError, RunError."""
    settings = base_settings(options, stages[0], {})
    data, uri = open_data(settings), tracking_uri()
    run = _sweep_run(options, stages, settings, data)
    with ray_cluster(settings) as (cpus, gpus):
        plan = plan_trials(cpus, gpus, options.workers_per_trial, options.gpus_per_trial, options.max_concurrent)
        print(checked_plan(settings, data, plan.workers))
        print(f"trials: {plan}")
        for stage in stages:
            print(f"stage {stage.name}: {stage.described()}")
        if options.dry_run:
            print("dry run: nothing was trained")
            return 0
        options.directory.mkdir(parents=True, exist_ok=True)
        with run.locked(way_out="say another --name"):
            run.write()
            tracked = TrackedRun(run.directory, run.key, uri, print)
            tracked.start(_opening(run.directory.name.replace("-", " "), "sweep", settings, data, ""))
            status = FAILED
            try:
                status = _run_stages(options, stages, data, uri, plan, run, tracked)
            except KeyboardInterrupt:
                status = KILLED
                raise
            finally:
                tracked.close(status)
    if status == KILLED:
        print("stopped; the same command goes on")
        return EXIT_INTERRUPTED
    return 0


def _run_stages(
    options: Options,
    stages: Sequence[Stage],
    data: PreparedData,
    uri: str,
    plan: TrialPlan,
    run: Run,
    tracked: TrackedRun,
) -> str:
    """The state for MLflow."""
    started, found, notes = time.monotonic(), dict[str, Any](), []
    winner: tuple[Stage, Settings, Record] | None = None
    for stage in stages:
        settings = base_settings(options, stage, found)
        left = None if options.time_budget is None else options.time_budget - (time.monotonic() - started)
        print(f"\n{stage.name}: {stage.model}" + (f" with {described(found)}" if found else ""), flush=True)
        directory = options.directory / stage.name
        child = _child(directory, settings, data)
        child.write()
        stage_run = TrackedRun(directory, child.key, uri, print)
        stage_run.start(_opening(f"{run.directory.name} {stage.name}", "stage", settings, data, run.key))
        result, state = None, KILLED
        try:
            result = run_stage(stage, settings, data, plan, directory, uri, child.key, left)
            state = FINISHED if result.complete else KILLED
            if result.records:
                write_stage_report(directory / "report", stage, result.records)
                number = len(stage_run.spool.records)
                stage_run.log_directory(f"report/{number}", directory / "report", "report")
                note = stage_markdown(stage, result.records)
                stage_run.log_tags(f"description/{number}", {"mlflow.note.content": note})
                notes.append(f"### {stage.name}\n\n{note}")
        finally:
            stage_run.close(state)
        best = best_of(result.records)
        if not result.complete:
            return KILLED
        if best is None:
            raise RunError(f"no trial of stage {stage.name} has a score; see trial.log and MLflow for the reasons")
        assert best.best_score is not None
        print(f"{stage.name}: {described(best.point)}  validation NDCG_p@10 {best.best_score:.4f}", flush=True)
        winner = (stage, with_point(settings, best.point, stage.name), best)
        found |= best.point
        if result.is_cut and stage is not stages[-1]:
            print("warning: the time budget is used up; later stages are left out", flush=True)
            break
    assert winner is not None
    _conclude(options, winner, data, uri, plan, tracked, notes)
    return FINISHED


def _conclude(
    options: Options,
    winner: tuple[Stage, Settings, Record],
    data: PreparedData,
    uri: str,
    plan: TrialPlan,
    tracked: TrackedRun,
    notes: list[str],
) -> None:
    """Tests the winner, once, and writes best.yaml."""
    stage, settings, record = winner
    directory = options.directory / stage.name / record.name
    if read_result(directory) is None:  # else it was tested by an earlier command
        train(settings, plan.workers, data, read_run(directory), uri, phase="test")
    test = read_result(directory)
    content = best_yaml(settings, stage, record, options.command, tracked.run_id)
    path = options.directory / "best.yaml"
    write_best(path, content)
    written = [path]
    if options.write_config:
        written.append(Path("conf/train") / f"{options.write_config}.yaml")
        write_best(written[-1], content)
    number = len(tracked.spool.records)
    notes.append(f"### best.yaml\n\n```yaml\n{content}```")
    tracked.log_tags(f"description/{number}", {"mlflow.note.content": "\n\n".join(notes)})
    metrics = {"best_val/ndcg_p_at_10": record.best_score or 0.0}
    if test is not None:
        print("\ntest of the winner:")
        print(headline_table({settings.model: test.test, **test.floors}))
        metrics |= {f"test/{name}": value for name, value in test.test.items()}
    tracked.log_metrics(f"best/{number}", metrics, 0)
    report = options.directory / "report"
    report.mkdir(exist_ok=True)
    write_best(report / "best.yaml", content)
    tracked.log_directory(f"report/{number}", report, "report")
    print(f"\nbest settings: {' and '.join(map(str, written))}")
    print(f"train them: python -m pnfrec_dist.train --dataset {options.dataset} --config {written[-1]}")


def _opening(name: str, kind: str, settings: Settings, data: PreparedData, parent: str) -> Opening:
    tags = {"kind": kind, "model": settings.model, "mlflow.source.name": "python -m tune"}
    params = {name: str(value) for name, value in flatten(to_mapping(settings)).items()} if kind == "stage" else {}
    return Opening(settings.experiment, name, tags, params, data.manifest, data.directory, parent)


def _child(directory: Path, settings: Settings, data: PreparedData) -> Run:
    """The stage's own directory, found again or new."""
    if (directory / RUN_FILE).exists():
        return read_run(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return Run(directory, to_mapping(settings), data.manifest.digest)


def _sweep_run(options: Options, stages: Sequence[Stage], settings: Settings, data: PreparedData) -> Run:
    """The sweep's directory, found again or new. Raises InputError where it is another sweep's."""
    spaces = {stage.name: json.loads(json.dumps(dataclasses.asdict(stage))) for stage in stages}
    for stage in spaces.values():
        stage.pop("num_samples")  # more of them add to a sweep
    shared = {name: value for name, value in flatten(to_mapping(settings)).items() if name not in MAY_CHANGE}
    content = {"sweeps": options.dataset, "stages": spaces, "settings": shared}
    if not (options.directory / RUN_FILE).exists():
        return Run(options.directory, content, data.manifest.digest)
    run = read_run(options.directory)
    if run.data_digest != data.manifest.digest:
        raise InputError(f"{options.directory} is a sweep on other data; say another --name")
    stored, now = flatten(run.settings), flatten(content)
    other = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
    if other:
        first = f"{other[0]} {stored.get(other[0])!r} -> {now.get(other[0])!r}"
        raise InputError(f"{options.directory} is a sweep that differs in {first}; say another --name")
    return run


def summary(seconds: float, own: float, concurrent: int) -> str:
    """How much of a sweep's time is not its trials'."""
    overhead = seconds * concurrent / own - 1 if own else 0.0
    return f"{duration(seconds)} for trials of {duration(own)} in all, {concurrent} at a time: {overhead:.0%} overhead"
