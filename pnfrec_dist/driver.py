"""The driver of a training: opens the data, plans, starts workers and the MLflow run, shows and logs what happens."""

import dataclasses
import json
import re
import secrets
import shlex
import time
from pathlib import Path

import psutil

from pnfrec_dist.cli import (
    EXIT_INTERRUPTED,
    conf_names,
    load_conf,
    parse_train_settings,
    print_settings,
)
from pnfrec_dist.config import Settings
from pnfrec_dist.data.epoch_plan import num_steps, require_enough_users
from pnfrec_dist.data.prepared import PreparedData, TrainData, open_prepared
from pnfrec_dist.dataset_config import DatasetSettings
from pnfrec_dist.errors import InputError
from pnfrec_dist.launch import WorkerPlan, ray_session, run_training
from pnfrec_dist.mappings import flatten, to_mapping
from pnfrec_dist.progress import ProgressReport, headline_table
from pnfrec_dist.storage import Location
from pnfrec_dist.tracking import FAILED, FINISHED, KILLED, TrackedRun, start_run, tracking_uri
from pnfrec_dist.training.checkpoint import read_state
from pnfrec_dist.training.loop import Event, epoch_checkpoint
from pnfrec_dist.training.plan import StepPlan, plan_step

RUN_FILE = "run.json"
RESUMABLE = (
    "num_workers",
    "num_gpus",
    "epochs",
    "dry_run",
    "resume",
    "data_dir",
    "output_dir",
    "experiment",
    "ray_address",
    "config",
    "item_table",
    "train.patience",
    "train.accumulation",
    "train.compile",
    "loss.exact_path",
    "loss.tile_mib",
    "evaluation.batch_size",
)
"""Settings that may change when a run is resumed."""


def drive(settings: Settings) -> int:
    """Trains and returns the exit code. Raises InputError for wrong input."""
    data = open_data(settings)
    train_data = data.train()
    run_dir, resumed_run = _run_directory(settings, data)
    first_epoch = _first_epoch(settings)
    uri = tracking_uri()
    print(f"{settings.model} on {settings.dataset}")
    print_settings(flatten(to_mapping(settings)))
    with ray_session(settings) as plan:
        require_enough_users(len(train_data), settings.train.batch_size, plan.num_workers)
        step = plan_step(settings, train_data, data.num_items, plan.num_workers, on_gpu=plan.use_gpu)
        print(_describe(settings, data, train_data, plan, step, uri), flush=True)
        _require_memory(settings, plan, step)
        if settings.dry_run:
            print("dry run: nothing was trained")
            return 0
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {run_dir} ({error.strerror}); choose another --output-dir") from error
        run = start_run(settings, data.manifest, data.directory, run_dir.name, resumed_run)
        (run_dir / RUN_FILE).write_text(json.dumps({"run_id": run.run_id, "tracking_uri": run.uri}) + "\n")
        return _train(settings, plan, data, run_dir, run, first_epoch)


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


def _run_directory(settings: Settings, data: PreparedData) -> tuple[Path, str]:
    """(directory of the run, MLflow run id to take up again or ""). A resumed run goes on in its own directory."""
    if not settings.resume:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        name = f"{settings.model}-{settings.dataset}-{stamp}-{secrets.token_hex(2)}"
        return Path(settings.output_dir).resolve() / name, ""
    checkpoint = Path(settings.resume).resolve()
    state = read_state(checkpoint)
    stored, now = flatten(state["settings"]), flatten(to_mapping(settings))
    differences = [
        f"{name} {stored.get(name)!r} -> {value!r}"
        for name, value in now.items()
        if name not in RESUMABLE and stored.get(name) != value
    ]
    if state["data_digest"] != data.manifest.digest:
        differences.append("the content of the data set")
    if differences:
        raise InputError(
            f"--resume {settings.resume}: that run differs in {'; '.join(differences)}; resume it as it was"
        )
    run_dir = checkpoint.parent.parent
    run_file = run_dir / RUN_FILE
    best_epoch = state["train_state"]["best_epoch"]
    if not run_file.is_file():
        raise InputError(
            f"--resume {settings.resume}: {run_dir} is no run (no {RUN_FILE}); resume it where it was written"
        )
    if best_epoch:
        read_state(epoch_checkpoint(run_dir, best_epoch))
    return run_dir, json.loads(run_file.read_text())["run_id"]


def _first_epoch(settings: Settings) -> int:
    return read_state(Path(settings.resume))["train_state"]["epoch"] if settings.resume else 1


def _describe(
    settings: Settings, data: PreparedData, train: TrainData, plan: WorkerPlan, step: StepPlan, uri: str
) -> str:
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
            f"{_size(step.logits)} logits, {_size(step.data)} data; {_size(step.total)} in all",
            f"tracking: {uri}",
        ]
    )


def _require_memory(settings: Settings, plan: WorkerPlan, step: StepPlan) -> None:
    """Raises InputError when the workers will not fit this machine's memory. Of a cluster's nothing is known here."""
    if settings.ray_address or (plan.use_gpu and not plan.gpu_bytes):
        return
    if plan.use_gpu:
        free, needed, where = plan.gpu_bytes, step.total, "a GPU has"
    else:
        free, needed, where = psutil.virtual_memory().available, step.total * plan.num_workers, "this machine has free"
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
        "--num-workers 1": step.total if not plan.use_gpu and plan.num_workers > 1 and step.total <= free else 0,
    }
    best = sorted((way for way, saved in ways.items() if saved > step.total // 20), key=lambda way: -ways[way])
    workers = "" if plan.use_gpu else f"{plan.num_workers} workers x "
    raise InputError(
        f"training needs about {workers}{_size(step.total)}, {where} {_size(free)}; try {', '.join(best[:3])}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _train(
    settings: Settings, plan: WorkerPlan, data: PreparedData, run_dir: Path, run: TrackedRun, first_epoch: int
) -> int:
    """Runs the workers, logs what they report, prints the result; the MLflow run ends in the state that came true."""
    last: dict[str, Event] = {}
    status = FAILED
    try:
        with ProgressReport(settings.epochs, first_epoch) as progress:

            def on_event(event: Event) -> None:
                last[event["kind"]] = event
                if event["kind"] == "step":
                    progress.step(event)
                elif event["kind"] == "epoch":
                    progress.epoch(event)
                    run.log_metrics(event["metrics"], event["epoch"])

            workers_settings = dataclasses.replace(
                settings, resume=str(Path(settings.resume).resolve()) if settings.resume else ""
            )
            completed = run_training(workers_settings, plan, data.directory, run_dir, on_event)
        status = FINISHED if "test" in last else FAILED if "diverged" in last else KILLED
    except KeyboardInterrupt:
        status = KILLED
        raise
    finally:
        if status != FINISHED:
            run.finish(status)
    if "diverged" in last:
        event = last["diverged"]
        raise InputError(
            f"the loss became {event['loss']} in epoch {event['epoch']}; lower --optimizer.lr {settings.optimizer.lr:g}"
        )
    if "test" not in last:
        assert not completed
        print(f"stopped; run {run.run_id} is marked {status}; go on with:")
        checkpoint = shlex.quote(last["stopped"]["checkpoint"])
        print(f"  python -m pnfrec_dist.train {_same_run(settings)} --resume {checkpoint}")
        return EXIT_INTERRUPTED
    _finish(settings, run, last["test"])
    return 0


def _finish(settings: Settings, run: TrackedRun, test: Event) -> None:
    metrics = {f"test/{name}": value for name, value in test["metrics"].items()}
    metrics.update({f"popularity/{name}": value for name, value in test["popularity"].items()})
    run.log_metrics(metrics, test["best_epoch"])
    run.log_tags({"best_epoch": str(test["best_epoch"])})
    run.log_directory(Path(test["checkpoint"]), "checkpoint")
    run.finish(FINISHED)
    print()
    print(headline_table({settings.model: test["metrics"], "popularity": test["popularity"]}))
    print()
    print(f"best epoch {test['best_epoch']}, checkpoint {test['checkpoint']}")
    print(f"MLflow run {run.run_id}; see it with: make mlflow-ui")


def _same_run(settings: Settings) -> str:
    """Flags that describe this run again: what differs from the YAML defaults."""
    base = parse_train_settings(["--dataset", settings.dataset, "--model", settings.model, "--config", settings.config])
    chosen, default = flatten(to_mapping(settings)), flatten(to_mapping(base))
    flags = [f"--dataset {settings.dataset}", f"--model {settings.model}", f"--config {settings.config}"]
    for name, value in chosen.items():
        if value != default[name] and name not in ("resume", "dry_run"):
            text = " ".join(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value]))
            flags.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(flags)
