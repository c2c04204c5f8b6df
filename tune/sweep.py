"""A sweep: runs the stages one after another, each with the values found before, then tests the winner once.

runs/tune-<dataset>/                 run.json, run.lock, tracking.jsonl of the parent run in MLflow
runs/tune-<dataset>/<stage>/         the same for the stage, its trials (records.py), report/
runs/tune-<dataset>/best.yaml        complete training settings of the winner
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pnfrec_dist.cli import EXIT_INTERRUPTED
from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan, gpu_share
from pnfrec_dist.cluster.session import ray_cluster
from pnfrec_dist.cluster.worker_plan import Node, gpu_memory, worker_options
from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.experiments.terminal_progress import headline_table
from pnfrec_dist.experiments.tracked_training import WAY_OUT, Job, train
from pnfrec_dist.experiments.training_plan import checked_plan, fitting_in_gpu, open_data
from pnfrec_dist.files.atomic import writing
from pnfrec_dist.files.text import duration
from pnfrec_dist.tracking.address import tracking_uri
from pnfrec_dist.tracking.run import TrackedRun
from pnfrec_dist.tracking.run_start import Opening, opening_of_training
from pnfrec_dist.tracking.spool import FAILED, FINISHED, KILLED
from pnfrec_dist.training.result import read_result
from pnfrec_dist.training.run_directory import AUTO_MAY_CHANGE, RUN_FILE, Run, read_run
from tune.options import Options, base_settings
from tune.records import Record, best_of, forget_failed
from tune.report import best_yaml, stage_markdown, workers_flag, write_best, write_stage_report
from tune.search import listed_points
from tune.space import Point, Stage, described, require_space, with_point
from tune.stages import StageResult, plan_trials, run_stage
from tune.trial import BEST_METRIC, Assignment


def run_sweep(options: Options, stages: Sequence[Stage]) -> int:
    """Runs the missing trials of a sweep, reports, and returns the exit code. Raises InputError, RunError."""
    settings = base_settings(options, stages[0], {})
    data, uri = open_data(settings), tracking_uri()
    with (
        _own_directory(options, stages, settings, data) as run,
        ray_cluster(worker_options(settings), dashboard=True, dry_run=options.dry_run) as nodes,
    ):
        plan = _trial_plan(options, stages, data, nodes)
        if plan.workers.use_gpu:
            options = dataclasses.replace(options, gpus_per_trial=plan.workers.num_workers)
            settings = base_settings(options, stages[0], {})
        for stage in stages:
            if stage.search == "random":
                require_space(stage, base_settings(options, stage, {}), listed_points(stage, settings.seed))
            largest = _largest(options, stage)
            checked_plan(largest, data, plan.workers, plan)
        print(checked_plan(settings, data, plan.workers))
        print(f"trials: {plan}")
        for stage in stages:
            print(f"stage {stage.name}: {stage.described()}")
        if options.dry_run:
            print("dry run: nothing was trained")
            return 0
        run.write()
        tracked = TrackedRun(run.directory, run.key, uri, print)
        tracked.start(_opening(run.directory.name.replace("-", " "), "sweep", settings, data, ""))
        status = FAILED
        try:
            status = FINISHED if Sweep(options, data, uri, plan, run, tracked).run(stages) else KILLED
        except KeyboardInterrupt:
            status = KILLED
            raise
        except OSError as error:
            raise RunError(f"the sweep stopped ({error}); fix this, and run the same command again") from error
        finally:
            tracked.close(status)
    if status == KILLED:
        print("stopped; run the same command again to continue")
        return EXIT_INTERRUPTED
    return 0


def _trial_plan(options: Options, stages: Sequence[Stage], data: PreparedData, nodes: Sequence[Node]) -> ConcurrentPlan:
    """The plan of the flags. Without --gpus-per-trial, trials on this machine's GPUs get the share that they need."""
    gpus, most = options.gpus_per_trial, options.max_concurrent
    largest = [_largest(options, stage) for stage in stages]
    is_here = not largest[0].ray_address  # of other machines' GPUs, the memory is not known
    if gpus is None and is_here and sum(node.gpus for node in nodes) >= 1 and (memory := gpu_memory()):
        trials = max(stage.num_trials for stage in stages)
        per_gpu = fitting_in_gpu(largest, data, memory)
        gpus = gpu_share(nodes, per_gpu, trials if most is None else min(most, trials))
    return plan_trials(nodes, options.workers_per_trial, gpus, most)


def _largest(options: Options, stage: Stage) -> Settings:
    """The settings of the stage's point that needs the most memory."""
    return with_point(base_settings(options, stage, {}), stage.largest(), stage.name)


@contextlib.contextmanager
def _own_directory(options: Options, stages: Sequence[Stage], settings: Settings, data: PreparedData) -> Iterator[Run]:
    """The sweep's run, locked against other commands within the context. A dry run writes nothing.

    Raises InputError if another command uses it, if it belongs to another sweep, or if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(f"to {options.directory}", WAY_OUT):
            run = _sweep_run(options, stages, settings, data)
            if not options.dry_run:
                stack.enter_context(run.locked(way_out="choose another --name"))
        yield run


class Sweep:
    """The stages of a sweep, while its command runs."""

    def __init__(
        self, options: Options, data: PreparedData, uri: str, plan: ConcurrentPlan, run: Run, tracked: TrackedRun
    ) -> None:
        """run, tracked: the sweep's own; uri: MLflow's."""
        self.options, self.data, self.uri, self.plan = options, data, uri, plan
        self.own, self.tracked = run, tracked
        self.started = time.monotonic()
        self.directories: dict[str, Path] = {}
        """stage -> directory, for the stages so far"""
        self.found: Point = {}
        """values that the stages so far chose"""
        self.notes: list[str] = []
        self.written: list[str] = []
        """paths of best.yaml"""

    def run(self, stages: Sequence[Stage]) -> bool:
        """False if Ctrl-C stopped it, else True. Raises RunError if a stage has no trial with a score."""
        for stage in stages:
            settings = base_settings(self.options, stage, self.found)
            result = self._run_stage(stage, settings)
            if not result.complete and not result.is_cut:
                return False
            best = best_of(result.records)
            if best is not None:
                print(f"{stage.name}: {described(best.point)}  validation NDCG_p@10 {best.best_score:.4f}")
                print(_overhead(result, self.plan.concurrent), flush=True)
                self.found |= best.point
                self._write_best(stage, with_point(settings, best.point, stage.name), best)
            if result.is_cut:
                found = (
                    f"{self.written[0]} has the best so far, not tested" if self.written else "no trial has a score yet"
                )
                print(f"the time budget is used up; {found}; run the same command again to continue")
                return True
            if best is None:
                raise RunError(f"no trial of stage {stage.name} has a score; {_reasons(result.records)}")
            if stage is stages[-1]:
                return self._test(stage, with_point(settings, best.point, stage.name), best)
        return True

    def _run_stage(self, stage: Stage, settings: Settings) -> StageResult:
        """Runs the stage as its own run in MLflow, and writes its report."""
        budget = self.options.time_budget
        left = None if budget is None else budget - (time.monotonic() - self.started)
        with_found = f" with {described(self.found)}" if self.found else ""
        print(f"\n{stage.name}: {stage.model}{with_found}", flush=True)
        child = stage_run(self.options.directory / stage.name, settings, self.data)
        directory = child.directory
        self.directories[stage.name] = directory
        child.write()
        tracked = TrackedRun(directory, child.key, self.uri, print)
        tracked.start(_opening(f"{self.own.directory.name} {stage.name}", "stage", settings, self.data, self.own.key))
        status = FAILED
        try:
            if self.options.retry_failed:
                forget_failed(directory)
            data_dir, workers = self.data.directory.uri, self.plan.workers
            shared = Assignment(stage.name, settings, workers, data_dir, str(directory), self.uri, child.key)
            result = run_stage(stage, shared, self.plan.concurrent, left)
            status = FINISHED if result.complete else KILLED
            if result.records:
                write_stage_report(directory / "report", stage, result.records)
                number = len(tracked.spool.records)
                tracked.log_directory(f"report/{number}", directory / "report", "report")
                self.tracked.log_directory(f"{stage.name}/{number}", directory / "report", f"report/{stage.name}")
                note = stage_markdown(stage, result.records)
                tracked.log_tags(f"description/{number}", {"mlflow.note.content": note})
                self.notes.append(f"### {stage.name}\n\n{note}")
        finally:
            tracked.close(status)
        return result

    def _write_best(self, stage: Stage, settings: Settings, record: Record) -> None:
        """Writes best.yaml with the best settings so far."""
        options, tracked = self.options, self.tracked
        content = best_yaml(settings, stage, record, options.command, tracked.run_id)
        report = options.directory / "report"
        paths = [options.directory / "best.yaml", report / "best.yaml"]
        if options.write_config:
            paths.append(Path("conf/train") / f"{options.write_config}.yaml")
        for path in paths:
            write_best(path, content)
        self.written = [_shown(path) for path in paths if path.parent != report]
        number = len(tracked.spool.records)
        tracked.log_directory(f"report/{number}", report, "report")
        note = "\n\n".join([*self.notes, f"### best.yaml\n\n```yaml\n{content}```"])
        tracked.log_tags(f"description/{number}", {"mlflow.note.content": note})

    def _test(self, stage: Stage, settings: Settings, record: Record) -> bool:
        """Tests the winner, once. False if the test was stopped."""
        directory = self.directories[stage.name] / record.name
        if read_result(directory) is None or read_run(directory).ended != "finished":  # otherwise it was tested before
            opening = opening_of_training(settings, self.data.manifest, self.data.directory)
            train(Job(settings, self.plan.workers, self.data, read_run(directory), self.uri, opening, "test"))
        if (test := read_result(directory)) is None:
            return False
        print("\ntest of the winner:")
        print(headline_table({settings.model: test.test, **test.floors}))
        metrics = {f"test/{name}": value for name, value in test.test.items()}
        metrics[BEST_METRIC] = record.best_score or 0.0
        self.tracked.log_metrics(f"best/{directory.relative_to(self.options.directory)}", metrics, 0)
        config = self.options.write_config or self.written[0]
        print(f"\nbest settings: {' and '.join(self.written)}")
        line = (
            f"python -m pnfrec_dist.train --dataset {self.options.dataset} --config {config} {workers_flag(settings)}"
        )
        print(f"train with them: {line}")
        return True


def _reasons(records: Sequence[Record]) -> str:
    """Why the first failed trial failed."""
    failed = [f"{described(record.point)} failed: {record.reason}" for record in records if record.reason]
    return f"{failed[0]} (MLflow has all reasons); fix it, and choose another --name" if failed else "no trial has run"


def _shown(path: Path) -> str:
    """The path, relative if it is below the working directory."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _overhead(result: StageResult, concurrent: int) -> str:
    """The stage's time in this command, compared with the time of its trials."""
    if not result.seconds or not result.own_seconds:
        return f"{len(result.records)} trials, none of them run by this command"
    share = concurrent * result.seconds / result.own_seconds - 1
    own = duration(result.own_seconds)
    return f"{duration(result.seconds)} for trials of {own} in total, {concurrent} at a time: {share:.0%} overhead"


def _opening(name: str, kind: str, settings: Settings, data: PreparedData, parent: str) -> Opening:
    tags = {"kind": kind, "model": settings.model, "mlflow.source.name": "python -m tune"}
    params = {name: str(value) for name, value in flatten(to_mapping(settings)).items()} if kind == "stage" else {}
    return Opening(settings.experiment, name, tags, params, data.manifest, data.directory, parent)


def stage_run(directory: Path, settings: Settings, data: PreparedData) -> Run:
    """The stage's directory, existing or new: <stage>, or <stage>-2, ... if earlier stages chose other values before.

    Trials are named only after what their stage searches, so they are valid only for the same other settings.
    """
    shared = _shared(settings)
    for number in itertools.count(1):
        place = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        if not (place / RUN_FILE).exists():
            place.mkdir(parents=True, exist_ok=True)
            return Run(place, to_mapping(settings), data.manifest.digest)
        run = read_run(place)
        if {name: value for name, value in flatten(run.settings).items() if name not in AUTO_MAY_CHANGE} == shared:
            return run
    raise AssertionError


def _shared(settings: Settings) -> dict[str, object]:
    """The settings that identify a sweep or a stage, in the form in which they are read back from a file."""
    found = {name: value for name, value in flatten(to_mapping(settings)).items() if name not in AUTO_MAY_CHANGE}
    return json.loads(json.dumps(found))


def _sweep_run(options: Options, stages: Sequence[Stage], settings: Settings, data: PreparedData) -> Run:
    """The sweep's directory, existing or new. Raises InputError if it belongs to another sweep."""
    spaces = {stage.name: json.loads(json.dumps(dataclasses.asdict(stage))) for stage in stages}
    for stage in spaces.values():
        stage.pop("num_samples")  # more samples extend the same sweep
    content = {"sweeps": options.dataset, "stages": spaces, "settings": _shared(settings)}
    if not (options.directory / RUN_FILE).exists():
        return Run(options.directory, content, data.manifest.digest)
    run = read_run(options.directory)
    if "sweeps" not in run.settings:
        raise InputError(f"{options.directory} is the run of a training; choose another --name")
    if run.data_digest != data.manifest.digest:
        raise InputError(f"{options.directory} is a sweep on other data; choose another --name")
    stored, now = flatten(run.settings), flatten(content)
    other = sorted(key for key in stored.keys() | now.keys() if stored.get(key) != now.get(key))
    if other:
        first = f"{other[0]} {stored.get(other[0])!r} -> {now.get(other[0])!r}"
        raise InputError(f"{options.directory} is a sweep that differs in {first}; choose another --name")
    return run
