"""The driver of a training: opens the data, plans, starts workers and the MLflow run, shows and logs what happens."""

import contextlib
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import psutil

from pnfrec_dist.cli import (
    EXIT_INTERRUPTED,
    conf_names,
    load_conf,
    parse_train_settings,
    print_settings,
)
from pnfrec_dist.cluster.planning import WorkerPlan
from pnfrec_dist.cluster.session import ray_session
from pnfrec_dist.cluster.signals import stop_requests
from pnfrec_dist.cluster.trainer import ray_options, run_training
from pnfrec_dist.cluster.worker import Phase
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import flatten, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.epoch_plan import num_steps, require_enough_users
from pnfrec_dist.data.prepared import PreparedData, TrainData, open_prepared
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.experiments.outcome import log_outcome
from pnfrec_dist.experiments.progress import ProgressReport, headline_table
from pnfrec_dist.files.locations import Location
from pnfrec_dist.tracking.run import Opening, TrackedRun, opening_of_training, tracking_uri
from pnfrec_dist.tracking.sender import FAILED, FINISHED, KILLED, shown
from pnfrec_dist.tracking.system_metrics import MachineMetrics
from pnfrec_dist.training.events import Event
from pnfrec_dist.training.memory_plan import StepPlan, plan_step
from pnfrec_dist.training.run_directory import RUN_FILE, Run, begin, choose_run


def drive(settings: Settings) -> int:
    """Trains and returns the exit code. Raises InputError for wrong input."""
    data = open_data(settings)
    uri = tracking_uri()
    run = choose_run(settings, data.manifest.digest)
    print(f"{settings.model} on {settings.dataset}")
    print_settings(flatten(to_mapping(settings)))
    with ray_session(ray_options(settings)) as plan:
        print(f"{checked_plan(settings, data, plan)}\ntracking: {shown(uri)}", flush=True)
        if settings.dry_run:
            print("dry run: nothing was trained")
            return 0
        test = train(settings, plan, data, run, uri)
    if test is None:
        print("go on with:")
        print(f"  python -m pnfrec_dist.train {_same_run(settings)} --resume {shlex.quote(str(run.directory))}")
        return EXIT_INTERRUPTED
    print()
    print(headline_table({settings.model: test["metrics"], **test["floors"]}))
    print()
    print(f"best epoch {test['best_epoch']}, checkpoint {test['checkpoint']}")
    where = f"at {shown(uri)}" if uri.startswith("http") else "with: make mlflow-ui"
    print(f"MLflow run {test['run_id'] or '(not known yet)'}; see it {where}")
    return 0


def checked_plan(settings: Settings, data: PreparedData, plan: WorkerPlan, at_a_time: int = 1) -> str:
    """What will run, for a reader. Raises InputError when the users are too few or the memory is too small.

    at_a_time: trainings with such workers, of a sweep.
    """
    train_data = data.train(settings.encoder.history)
    require_enough_users(len(train_data), settings.train.batch_size, plan.num_workers)
    step = plan_step(settings, train_data, data.num_items, plan.num_workers, on_gpu=plan.use_gpu)
    _require_memory(settings, plan, step, at_a_time)
    return _describe(settings, data, train_data, plan, step)


def open_data(settings: Settings) -> PreparedData:
    """The prepared data set, compared with conf/dataset/<name>.yaml where there is one."""
    directory = Location(settings.data_dir) / settings.dataset
    if not re.fullmatch(r"\w[\w.-]*", settings.dataset):
        raise InputError(f"--dataset is {settings.dataset!r}; a name has letters, digits, '.', '_' and '-' alone")
    if settings.dataset not in conf_names("dataset"):
        if not directory.is_dir():
            load_conf("dataset", settings.dataset, DatasetSettings())  # raises, naming the nearest data set
        return open_prepared(directory)
    expected = load_conf("dataset", settings.dataset, DatasetSettings())
    return open_prepared(directory, expected.prepared())


def _describe(settings: Settings, data: PreparedData, train: TrainData, plan: WorkerPlan, step: StepPlan) -> str:
    counts = data.manifest.counts
    steps = num_steps(len(train), settings.train.batch_size)
    return "\n".join(
        [
            f"data: {data.directory}, {len(train):,} training users, {data.num_items:,} items, "
            f"{counts['validation']['users']:,} validation and {counts['test']['users']:,} test users",
            f"plan: {plan}; {steps} steps of {settings.train.batch_size} users an epoch, "
            f"at most {settings.epochs} epochs",
            f"item table: {'sharded over the workers' if step.is_sharded else 'whole on every worker'}",
            f"memory per worker, about: {_size(step.table)} item table, {_size(step.table_training + step.passing)} "
            f"its gradients and Adam, {_size(step.encoders)} encoders, {_size(step.activations)} activations, "
            f"{_size(step.logits)} logits, {_size(step.data)} data, "
            f"{_size(step.checkpoint)} the checkpoint being written; {_size(step.total)} in all",
        ]
    )


def _require_memory(settings: Settings, plan: WorkerPlan, step: StepPlan, at_a_time: int) -> None:
    """Raises InputError when the workers will not fit this machine's memory. Of a cluster's nothing is known here."""
    if settings.ray_address or (plan.use_gpu and not plan.gpu_bytes):
        return
    if plan.use_gpu:
        free, needed, where = plan.gpu_bytes, step.total, "a GPU has"
    else:
        spared = 0 if step.is_sharded else step.checkpoint * (plan.num_workers - 1)  # rank 0 alone writes
        each = step.total * plan.num_workers - spared
        needed, free, where = at_a_time * each, psutil.virtual_memory().available, "this machine has free"
        if each <= free < needed:
            raise InputError(
                f"{at_a_time} trials at a time need about {_size(each)} each with the largest settings searched, "
                f"{where} {_size(free)}; say --max-concurrent {free // each}"
            )
    if needed <= free:
        return
    table = step.table + step.table_training + step.passing
    parts_save = step.activations * 7 // 8 - (step.table if not step.is_sharded else 0)
    kind, exact = settings.loss.cross_entropy, settings.loss.cross_entropy == "exact"
    fewer = "a lower --sampled.sce-buckets" if kind == "sce" else "a lower --sampled.num-items"
    ways = {
        "--item-table sharded": 0 if step.is_sharded or plan.num_workers == 1 else table // 2,
        "--train.accumulation 8": parts_save if settings.train.accumulation == 1 else 0,
        "a lower --train.batch-size": step.activations // 2,
        "--loss.exact-path auto or --loss.cross-entropy sampled_softmax": step.logits
        if exact and settings.loss.exact_path in ("materialised", "chunked")
        else 0,
        "a smaller --loss.tile-mib": step.logits * 3 // 4 if exact and settings.loss.tile_mib else 0,
        fewer: 0 if exact else step.logits // 2,
        "--loss.cross-entropy sampled_softmax": step.passing if exact else 0,
        "a lower --encoder.hidden-size": (table + step.encoders) // 2,
        "--checkpoint.no-background": step.checkpoint,
        f"--{'num-workers' if at_a_time == 1 else 'workers-per-trial'} 1": step.total
        if not plan.use_gpu and plan.num_workers > 1 and step.total <= free
        else 0,
    }
    best = sorted((way for way, saved in ways.items() if saved > step.total // 20), key=lambda way: -ways[way])
    workers = "" if plan.use_gpu else f"{plan.num_workers} workers x "
    raise InputError(
        f"training needs about {workers}{_size(step.total)}, {where} {_size(free)}; try {', '.join(best[:3])}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


class Display(Protocol):
    """Who sees what a training tells."""

    def show(self, event: Event) -> None: ...

    def line(self, text: str) -> None: ...


def train(
    settings: Settings,
    plan: WorkerPlan,
    data: PreparedData,
    run: Run,
    uri: str,
    name: str = "",
    parent: str = "",
    phase: Phase = "both",
) -> Event | None:
    """Trains in the foreground, shown on the terminal, until SIGINT or SIGTERM.

    name, parent: see opening_of_training. Returns the test event with the MLflow run's id and whether it was
    "asked_to_stop" all the same, or None when it stopped before the test. Raises InputError when the run refused,
    diverged or cannot be written, RunError when its workers failed for good.
    """
    opening = opening_of_training(settings, data.manifest, data.directory, name, parent)
    with taken_up(run, settings) as (epoch, done):
        if (epoch, done) != (1, 0) and phase != "test":
            way_out = "  (--resume never starts another run)" if settings.resume == "auto" and not parent else ""
            print(f"going on with {run.directory} in epoch {epoch} after step {done}{way_out}", flush=True)
        with ProgressReport(settings.epochs, epoch, plan.num_workers) as progress, stop_requests() as stop:
            job = Job(settings, plan, data, run, uri, opening, phase)
            try:
                last = run_tracked(job, progress, stop, _log_test)
            except RunError as error:
                raise RunError(f"{error}; the same command goes on from the newest checkpoint") from error
    if "test" not in last:
        print(f"stopped; run {last['tracked']['run_id']} is marked {last['tracked']['status']}")
        return None
    return {**last["test"], "run_id": last["tracked"]["run_id"], "asked_to_stop": stop.is_set()}


@contextlib.contextmanager
def taken_up(run: Run, settings: Settings, *, wait: bool = False) -> Iterator[tuple[int, int]]:
    """The run, driven by this process alone as long as the context lasts: (epoch, step) it goes on from.

    Raises InputError where another drives it (wait: waits until none does), or its directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run.locked(wait=wait))
            begun = begin(run, settings)
        except OSError as error:
            way_out = "make room, or choose another --output-dir"
            raise InputError(f"cannot write to {run.directory} ({error.strerror}); {way_out}") from error
        yield begun


@dataclass(frozen=True)
class Job:
    """A run that was taken up, and how it is to go on."""

    settings: Settings
    plan: WorkerPlan
    data: PreparedData
    run: Run
    uri: str
    """MLflow's"""
    opening: Opening
    phase: Phase = "both"


AtEnd = Callable[[Job, TrackedRun, str, dict[str, Event], list[Event]], None]
"""Logs what came of a job: told MLflow's status of it, the last event of each kind, and the epochs."""


def run_tracked(job: Job, display: Display, stop: threading.Event, at_end: AtEnd) -> dict[str, Event]:
    """Runs the workers and logs what they report; MLflow's run ends in the state that came true.

    Returns the last event of each kind, and "tracked": MLflow's {"run_id", "status"}. at_end is told of an error,
    such as workers that failed for good, as of an event, "failed". Raises as train() does.
    """
    run = job.run
    last: dict[str, Event] = {}
    epochs: dict[int, Event] = {}
    status, ending = FAILED, "trained" if job.phase == "train" else "test"
    tracked = TrackedRun(run.directory, run.key, job.uri, display.line)
    tracked.start(job.opening)
    try:

        def on_event(event: Event) -> None:
            last[event["kind"]] = event
            for epoch in [event] if event["kind"] == "epoch" else event.get("epochs", []):
                epochs[epoch["epoch"]] = epoch
                tracked.log_metrics(f"epoch/{epoch['epoch']}", epoch["metrics"], epoch["epoch"])
            display.show(event)

        if not stop.is_set():
            with MachineMetrics(tracked):
                directories = job.data.directory, run.directory
                run_training(job.settings, job.plan, *directories, on_event, stop, job.phase)
        status = FINISHED if ending in last else FAILED if last.keys() & {"diverged", "refused"} else KILLED
    except Exception as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        last["failed"] = {"kind": "failed", "text": first}
        raise
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        at_end(job, tracked, status, last, [epochs[epoch] for epoch in sorted(epochs)])
        try:
            tracked.close(status)
        finally:
            if not tracked.spool.pending:  # else the same command is to go on, if only to tell MLflow the end
                run.ended = {FINISHED: "finished"}.get(status, "diverged" if "diverged" in last else "")
                _write(run, display)
    if "refused" in last:
        raise InputError(last["refused"]["text"])
    if "diverged" in last:
        raise InputError(_say_diverged(last["diverged"], job.settings))
    return {**last, "tracked": {"run_id": tracked.run_id, "status": status}}


def _log_test(job: Job, tracked: TrackedRun, status: str, last: dict[str, Event], epochs: list[Event]) -> None:
    if "test" in last:
        log_outcome(tracked, job.settings, job.data, epochs, last["test"])


def _write(run: Run, display: Display) -> None:
    try:
        run.write()
    except OSError as error:
        display.line(f"warning: cannot write {run.directory / RUN_FILE} ({error.strerror}); the run stays unended")


def _say_diverged(event: Event, settings: Settings) -> str:
    where = f"step {event['step']} of epoch {event['epoch']}"
    if settings.train.non_finite == "skip":
        what = f"{event['skipped']} steps in a row, up to {where}, had a loss or gradient that is not finite"
        way_out = f"lower --optimizer.lr {settings.optimizer.lr:g}"
    else:
        what = f"the loss or a gradient is not finite in {where}"
        way_out = (
            f"lower --optimizer.lr {settings.optimizer.lr:g}, or leave such steps out with --train.non-finite skip"
        )
    return f"{what}; its users are in {event['batch']}; {way_out}"


def _same_run(settings: Settings) -> str:
    """Flags that describe this run again: what differs from the YAML defaults."""
    base = parse_train_settings(["--dataset", settings.dataset, "--model", settings.model, "--config", settings.config])
    chosen, default = flatten(to_mapping(settings)), flatten(to_mapping(base))
    flags = [f"--dataset {settings.dataset}", f"--model {settings.model}", f"--config {settings.config}"]
    for name, value in chosen.items():
        if value == default[name] or name in ("resume", "dry_run"):
            continue
        if isinstance(value, bool):
            group, dot, switch = name.rpartition(".")
            flags.append(f"--{group}{dot}{'' if value else 'no-'}{switch}".replace("_", "-"))
        else:
            text = " ".join(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value]))
            flags.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(flags)
