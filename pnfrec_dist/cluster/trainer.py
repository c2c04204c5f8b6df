"""Ray Train: starts Ray, plans workers, runs the loop on each, carries events to the driver and stop requests back.

A worker that is lost, and one that is stuck, make Ray Train start all workers again; the loop goes on from the newest
checkpoint.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pnfrec_dist.cluster.event_board import BoardHooks, remote_board
from pnfrec_dist.cluster.watchdog import FailureReport, Watchdog
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError, RunError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.training.events import Event
from pnfrec_dist.training.loop import Hooks, TrainLoop

Phase = Literal["train", "test", "both"]
"""train: no test users are met; test: of a run that was trained."""
DEFAULT_CPU_WORKERS = 2
POLL_SECONDS = 0.25
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
"""Read when Ray starts: no usage report, none of Ray Train's services that go unused here, quick polling, patience at
the start of workers. What the user has set stays."""


@dataclass(frozen=True)
class WorkerPlan:
    """Workers of a run: on GPUs (one each) or on CPUs."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    gpu_bytes: int = 0
    """memory of a GPU of this machine, where workers use GPUs"""
    min_workers: int | None = None
    """as few as this will do while others are missing; None: all are needed"""

    def __str__(self) -> str:
        each = "1 GPU" if self.use_gpu else f"{self.cpus_per_worker:g} CPU"
        least = f"{self.min_workers} to " if self.min_workers else ""
        workers = f"{self.num_workers} worker{'s' if self.num_workers != 1 else ''}"
        return f"{least}{workers}, {each} each"


class Node(NamedTuple):
    """What Ray sees of a machine."""

    cpus: float
    gpus: float = 0.0


def plan_workers(
    num_workers: int | None,
    num_gpus: int | None,
    nodes: Sequence[Node],
    min_workers: int | None = None,
    at_a_time: int = 1,
) -> WorkerPlan:
    """What --num-workers, --num-gpus and --min-workers mean on a cluster of these nodes.

    at_a_time: trainings with such workers. Raises InputError when the cluster has too few: Ray would wait for them
    without a word.
    """
    seen_cpus, seen_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    if num_gpus is None:
        num_gpus = int(seen_gpus) if num_workers is None else 0
    if num_gpus > seen_gpus:
        raise InputError(
            f"--num-gpus {num_gpus}, but Ray sees {seen_gpus:g} GPUs; lower it, or use --num-workers for CPU workers"
        )
    if num_gpus and num_workers not in (None, num_gpus):
        raise InputError(f"--num-workers {num_workers} and --num-gpus {num_gpus} differ; every GPU gets one worker")
    workers = num_gpus or num_workers or DEFAULT_CPU_WORKERS
    least = min_workers or workers
    if least > workers:
        raise InputError(f"--min-workers {min_workers} is more than the {workers} workers wanted; lower it")
    cpus = _cpus_each(nodes, workers * at_a_time, use_gpu=num_gpus > 0)
    if least * cpus > seen_cpus:
        raise InputError(f"{least} workers need {least} CPUs, but Ray sees {seen_cpus:g}; lower --num-workers")
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if num_gpus and torch.cuda.is_available() else 0
    return WorkerPlan(workers, num_gpus > 0, cpus, gpu_bytes, min_workers if least < workers else None)


def _cpus_each(nodes: Sequence[Node], workers: int, *, use_gpu: bool) -> float:
    """As many CPUs for each as still let all workers find a place, each on one node; at least 1."""
    cpus = sum(node.cpus for node in nodes) // workers
    while cpus > 1:
        places = (min(node.cpus // cpus, node.gpus) if use_gpu else node.cpus // cpus for node in nodes)
        if sum(places) >= workers:
            break
        cpus -= 1
    return max(1.0, cpus)


@contextlib.contextmanager
def ray_session(settings: Settings) -> Iterator[WorkerPlan]:
    """Ray, and the plan of a single training's workers."""
    with ray_cluster(settings) as nodes:
        yield plan_workers(settings.num_workers, settings.num_gpus, nodes, settings.min_workers)


def prepare_process(settings: Settings) -> None:
    """What Ray Train reads in a process that starts trainings."""
    own = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(settings.stall_timeout)}
    if settings.min_workers:  # a lost node may still be counted on at first; this ends the wait for it
        own["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "60"
    for name, value in (RAY_ENVIRONMENT | own).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)


def name_ray_to_helpers() -> None:
    """In a process of a sweep's Ray: tells the helpers of the trainings that it starts where their Ray is.

    The one that frees what a training held whose driver died asks the dashboard, and does not find it where another
    Ray runs on the machine.
    """
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # not Ray's public face: sweeps alone need it

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


@contextlib.contextmanager
def ray_cluster(settings: Settings, *, dashboard: bool = False) -> Iterator[list[Node]]:
    """Ray on this machine or a connection to settings.ray_address: the nodes that it sees.

    On this machine a CPU worker counts as one CPU even where cores are fewer than workers. dashboard: where several
    trainings share this Ray; through it, Ray Train frees what a training held whose driver died.
    """
    prepare_process(settings)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.ray_address:
        _require_ray(settings.ray_address)
        options["address"] = settings.ray_address
    else:  # its own, whatever cluster runs or ran on this machine
        cpus = max(os.cpu_count() or 1, settings.num_workers or DEFAULT_CPU_WORKERS)
        options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": cpus}
    try:
        ray.init(**options)
    except Exception as error:  # Ray's own are of any class
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if not settings.ray_address:
            raise RunError(f"Ray did not start on this machine: {reason} Is it too busy? Try again.") from error
        way_out = "a cluster that asks for a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (docs/cluster.md)"
        raise InputError(
            f"could not join Ray at --ray-address {settings.ray_address!r}: {reason}; {way_out}"
        ) from error
    try:
        with _terminated_as_interrupted():
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            yield [Node(found.get("CPU", 0), found.get("GPU", 0)) for found in alive]
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which a cluster's scheduler sends, does what Ctrl-C does, where Ray would end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _require_ray(address: str) -> None:
    """Raises InputError when nothing listens at host:port: Ray itself would try for many minutes."""
    if address == "auto":
        return
    way_out = "correct --ray-address, or leave it out to start Ray on this machine"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray-address is {address!r}; it must read <host>:<port> or auto; {way_out}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at --ray-address {address!r} ({error}); {way_out}") from error


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    context = ray.train.get_context()
    settings: Settings = config["settings"]
    if not config["use_gpu"]:
        torch.set_num_threads(max(1, int(config["cpus_per_worker"])))
    rank, size, device = context.get_world_rank(), context.get_world_size(), get_device()
    hooks = BoardHooks(config["board"])
    node = ray.get_runtime_context().get_node_id()
    hooks.report({"kind": "worker", "rank": rank, "size": size, "node": node, "pid": os.getpid()})
    _join_process_group(rank, size, "nccl" if config["use_gpu"] else "gloo", settings.stall_timeout)
    try:
        data = open_prepared(Location(config["data_dir"]))
        world, ways = World(rank, size, device), Hooks(hooks.report, hooks.should_stop, hooks.progress)
        loop = TrainLoop(settings, data, Path(config["run_dir"]), world, ways)
        if config["phase"] == "test" or (loop.train() and config["phase"] == "both"):
            loop.test()
        world.barrier()  # nobody closes its connections while another still reads
    except InputError as error:  # starting again would not help
        hooks.report({"kind": "refused", "text": str(error)})
    finally:
        if size > 1:
            dist.destroy_process_group()


class OwnRendezvous(TorchConfig):
    """Ray Train's torch support without its rendezvous, whose store listens on all interfaces."""

    @property
    def backend_cls(self) -> Any:
        return Backend


def _join_process_group(rank: int, size: int, backend: str, timeout: float) -> None:
    """Joins the workers into a process group; the store listens on rank 0's node address alone.

    timeout: seconds after which an exchange with a rank that is silent fails.
    """
    if size == 1:
        return
    listener = socket.create_server((ray.util.get_node_ip_address(), 0)) if rank == 0 else None
    address: Any = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    host, port = address
    if listener:
        descriptor = listener.detach()
        store = dist.TCPStore(host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)
    else:
        store = dist.TCPStore(host, port, size, is_master=False)
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def run_training(
    settings: Settings,
    plan: WorkerPlan,
    data_dir: Location,
    run_dir: Path,
    on_event: Callable[[Event], None],
    stop: threading.Event,
    phase: Phase = "both",
) -> None:
    """Trains on the planned workers, and tests; on_event gets every event in this thread.

    Once `stop` is set, the workers stop after the step in progress and leave a checkpoint. They are started again
    settings.max_failures times, then RunError is raised. data_dir and run_dir are absolute and reachable from every
    worker.
    """
    board = remote_board()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "settings": settings,
            "data_dir": data_dir.uri,
            "run_dir": str(run_dir),
            "phase": phase,
            "board": board,
            "use_gpu": plan.use_gpu,
            "cpus_per_worker": plan.cpus_per_worker,
        },
        torch_config=OwnRendezvous(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(plan.min_workers, plan.num_workers) if plan.min_workers else plan.num_workers,
            use_gpu=plan.use_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker, **({"GPU": 1} if plan.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=f"{run_dir.name}-{time.time_ns()}",  # an old name would make Ray Train take up what it knows of it
            storage_path=str(run_dir / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=settings.max_failures
            ),
            callbacks=[FailureReport(board)],
        ),
    )
    watchdog = Watchdog(settings.stall_timeout)

    def deliver() -> None:
        for event in ray.get(board.take.remote()):
            watchdog.see(event)
            on_event(event)

    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if stop.is_set() and not asked:
            board.request_stop.remote()
            asked = True
        deliver()
        if text := watchdog.check():
            on_event({"kind": "warning", "text": text})
    deliver()
    if failure and isinstance(failure[0], ray.train.TrainingFailedError):
        raise RunError(_say_failed(failure[0], watchdog.reason, settings, run_dir)) from failure[0]
    if failure:
        raise failure[0]


def _say_failed(error: BaseException, reason: str, settings: Settings, run_dir: Path) -> str:
    """In a line; all that Ray says goes to a file."""
    file, where = run_dir / "failure.txt", ""
    with contextlib.suppress(OSError):
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f" (more in {file})"
    times = f"more than --max-failures {settings.max_failures} times"
    return f"workers failed {times}, at last: {reason or error}{where}"


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second raises KeyboardInterrupt."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping after this step, with a checkpoint; press Ctrl-C again to give up at once", flush=True)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
