"""The plan of one training, made before it starts: its data, its steps, and whether the memory is enough."""

import re
from collections.abc import Iterable

import psutil

from pnfrec_dist.cli import command
from pnfrec_dist.cluster.concurrent_plan import ConcurrentPlan
from pnfrec_dist.cluster.worker_plan import WorkerPlan, on_one_gpu
from pnfrec_dist.config.conf_files import conf_names, load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.registry import CROSS_ENTROPIES
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.epoch_plan import num_steps, require_enough_users
from pnfrec_dist.data.prepared import TRAINING_PARTS, PreparedData, TrainData, open_prepared
from pnfrec_dist.data.schema import how_to_prepare
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.metrics import require_measures
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import counted, memory_size
from pnfrec_dist.losses.catalog_loss import CatalogLoss
from pnfrec_dist.model.precision import with_fastest_precision
from pnfrec_dist.training.held_out import require_points
from pnfrec_dist.training.memory_plan import StepPlan, plan_step

CUDA_CONTEXT = 640 * 2**20
"""Bytes of GPU memory that CUDA takes for each process, before any tensor."""


def open_data(settings: Settings) -> PreparedData:
    """The prepared data set, compared with conf/dataset/<name>.yaml if there is one. Checks all files that a training
    reads."""
    directory = Location(settings.data_dir) / settings.dataset
    if not re.fullmatch(r"\w[\w.-]*", settings.dataset):
        raise InputError(f"--dataset is {settings.dataset!r}; a name may only have letters, digits, '.', '_' and '-'")
    if settings.dataset not in conf_names("dataset"):
        if not directory.is_dir():
            load_conf("dataset", settings.dataset, DatasetSettings())  # raises, naming the nearest data set
        data = open_prepared(directory)
    else:
        data = open_prepared(directory, load_conf("dataset", settings.dataset, DatasetSettings()).prepared())
    _require_holdout(data, settings)
    if not settings.final:
        require_points(settings, data)
    return data.require_whole(*TRAINING_PARTS)


def _require_holdout(data: PreparedData, settings: Settings) -> None:
    """Raises InputError unless the data hold something out, or (--final) nothing."""
    if settings.final and data.manifest.has_holdout:
        way_out = f"{command('prep')} --dataset {settings.dataset} --split.holdout none --data-dir DIRECTORY"
        raise InputError(
            f"--final trains on all interactions, but {data.directory} holds some out; prepare them without a holdout "
            f"({way_out}), then give the same --data-dir"
        )
    if not settings.final and not data.manifest.has_holdout:
        raise InputError(
            f"{data.directory} has no validation users (split.holdout none); train on it with --final RUN, or prepare "
            f"it with a holdout: {how_to_prepare(data.directory.name)}"
        )


def checked_plan(settings: Settings, data: PreparedData, plan: WorkerPlan, among: ConcurrentPlan | None = None) -> str:
    """Describes the training for people. Raises InputError if there are too few users or too little memory, and for
    own code that is not of its kind.

    among: of all trainings that run at the same time; None: it is the only one.
    """
    require_measures(settings.evaluation)
    automatic = " (train.precision auto)" if settings.train.precision == "auto" else ""
    settings = with_fastest_precision(settings, on_gpu=plan.use_gpu)
    train_data = data.train(settings.encoder.history)
    require_enough_users(len(train_data), settings.train.batch_size, plan.num_workers)
    step = plan_step(settings, train_data, data.num_items, plan.num_workers, on_gpu=plan.use_gpu)
    _require_memory(settings, plan, step, among)
    return _describe(settings, data, train_data, plan, step, f"{settings.train.precision}{automatic}")


def fitting_in_gpu(trainings: Iterable[Settings], data: PreparedData, gpu_bytes: int) -> int:
    """How many single workers fit into a GPU of this memory, if each is as large as the largest training."""
    steps = (
        plan_step(
            with_fastest_precision(settings, on_gpu=True),
            data.train(settings.encoder.history),
            data.num_items,
            1,
            on_gpu=True,
        )
        for settings in trainings
    )
    return gpu_bytes // max(_beside_others(step) for step in steps)


def _beside_others(step: StepPlan) -> int:
    """Bytes of a GPU that a worker needs beside others. A margin is left: step.total also counts host memory."""
    return step.total + CUDA_CONTEXT


def _describe(
    settings: Settings, data: PreparedData, train: TrainData, plan: WorkerPlan, step: StepPlan, precision: str
) -> str:
    counts = data.manifest.counts
    held_out = "no holdout"
    if data.manifest.has_holdout:
        held_out = f"{counts['validation']['users']:,} validation and {counts['test']['users']:,} test users"
    epochs = counted(settings.epochs, "epoch")
    steps = num_steps(len(train), settings.train.batch_size)
    return "\n".join(
        [
            f"data: {data.directory}, {len(train):,} training users, {data.num_items:,} items, {held_out}",
            f"plan: {plan}; {counted(steps, 'step')} of {settings.train.batch_size} users an epoch, "
            f"{epochs if settings.final else f'at most {epochs}'}",
            f"item table: {'sharded over the workers' if step.is_sharded else 'whole on every worker'}; "
            f"matmuls: {precision}",
            f"memory per worker, about: {memory_size(step.table)} item table, "
            f"{memory_size(step.table_training + step.passing)} its gradients and Adam, "
            f"{memory_size(step.encoders)} encoders, {memory_size(step.activations)} activations, "
            f"{memory_size(step.logits)} logits, {memory_size(step.data)} data, "
            f"{memory_size(step.checkpoint)} the checkpoint being written; {memory_size(step.total)} in all",
            *(f"WARNING: {text}" for text in data.manifest.warnings()),
        ]
    )


def _require_memory(settings: Settings, plan: WorkerPlan, step: StepPlan, among: ConcurrentPlan | None) -> None:
    """Raises InputError if the workers do not fit into this machine's memory. The memory of a cluster is not known."""
    if settings.ray_address or (plan.use_gpu and not plan.gpu_bytes):
        return
    at_a_time = among.concurrent if among else 1
    if plan.use_gpu:
        free, needed, where = plan.gpu_bytes, step.total, "a GPU has"
        share, each = free // on_one_gpu(plan.gpu_share), _beside_others(step)
        if among and plan.gpu_share < 1 and share < each <= free:
            raise InputError(
                f"{settings.model} needs about {memory_size(each)} beside others, {plan.gpu_share:g} of a GPU has "
                f"{memory_size(share)}; use {among.fewer(free // each)}"
            )
    else:
        spared = 0 if step.is_sharded else step.checkpoint * (plan.num_workers - 1)  # only rank 0 writes
        each = step.total * plan.num_workers - spared
        needed, free, where = at_a_time * each, psutil.virtual_memory().available, "the free memory is"
        if among and each <= free < needed:
            searched = " with the largest settings searched" if among.what == "trial" else ""
            raise InputError(
                f"{at_a_time} {among.what}s at a time need about {memory_size(each)} each{searched}, "
                f"{where} {memory_size(free)}; use {among.fewer(free // each)}"
            )
    if needed <= free:
        return
    ways = _ways_out(settings, plan, step, free, at_a_time)
    best = sorted((way for way, saved in ways.items() if saved > step.total // 20), key=lambda way: -ways[way])
    workers = "" if plan.use_gpu else f"{plan.num_workers} workers x "
    needs = f"training needs about {workers}{memory_size(step.total)}, {where} {memory_size(free)}"
    raise InputError(f"{needs}; try {', '.join(best[:3])}")


def _ways_out(settings: Settings, plan: WorkerPlan, step: StepPlan, free: int, at_a_time: int) -> dict[str, int]:
    """What a user can change -> about how many bytes that saves per worker; 0 if it does not apply."""
    table = step.table + step.table_training + step.passing
    parts_save = step.activations * 7 // 8 - (step.table if not step.is_sharded else 0)
    cross_entropy: CatalogLoss = CROSS_ENTROPIES.load(settings.loss.cross_entropy)
    return {
        "--item-table sharded": 0 if step.is_sharded or plan.num_workers == 1 else table // 2,
        "--train.accumulation 8": parts_save if settings.train.accumulation == 1 else 0,
        "a lower --train.batch-size": step.activations // 2,
        **{way: int(share * step.logits) for way, share in cross_entropy.ways_to_save(settings).items()},
        "--loss.cross-entropy sampled_softmax": step.passing,
        "a lower --encoder.hidden-size": (table + step.encoders) // 2,
        "--checkpoint.no-background": step.checkpoint,
        f"--{'num-workers' if at_a_time == 1 else 'workers-per-trial'} 1": step.total
        if not plan.use_gpu and plan.num_workers > 1 and step.total <= free
        else 0,
    }
