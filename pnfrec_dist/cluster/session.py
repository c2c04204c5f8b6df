"""Starts Ray on this machine or joins a cluster. Ray is imported when it is first needed."""

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from pnfrec_dist.cluster.environment import RAY_ENVIRONMENT
from pnfrec_dist.cluster.stop_signals import kept_sigterm, terminated_as_interrupted
from pnfrec_dist.cluster.worker_plan import Node, WorkerOptions, WorkerPlan, plan_workers, this_machine
from pnfrec_dist.errors import InputError, RunError, first_line

LONGEST_DIRECTORY = 107 - len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
"""Characters of a temporary directory. 107 is the limit of a socket's path (AF_UNIX)."""
_has_own_ray = False


@contextlib.contextmanager
def planned_workers(options: WorkerOptions) -> Iterator[WorkerPlan]:
    """The plan of a command's workers. They may run until the context ends.

    On this machine, Ray is not started here but by start_ray, when workers need it; it is stopped at the end. A cluster
    at options.address is joined at once, because the plan depends on its nodes. If this process already runs Ray, as a
    notebook may, the plan is for the machines of that Ray, and it keeps running.
    """
    if options.address:
        with ray_cluster(options) as nodes:
            yield plan_workers(options, nodes)
        return
    had_ray, here = _has_ray(), this_machine(options.num_workers)
    plan = plan_workers(options, _nodes() if had_ray else [here])
    is_alone = plan.num_workers == 1 and here.gpus >= plan.use_gpu
    cpus = min(plan.cpus_per_worker, here.cpus)
    try:
        with terminated_as_interrupted():
            yield dataclasses.replace(plan, in_this_process=is_alone, cpus_per_worker=cpus)
    finally:
        if not had_ray:
            _stop_ray()


def prepare_process(options: WorkerOptions) -> None:
    """Sets what Ray Train reads in a process that starts trainings."""
    own = {}
    if options.stall_timeout is not None:
        own["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(options.stall_timeout)
    if options.min_workers:  # Ray may still count a lost node at first; this ends the wait for it
        own["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "60"
    for name, value in (RAY_ENVIRONMENT | own).items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)


def name_ray_to_helpers() -> None:
    """In a process of a sweep's Ray: gives the address of this Ray to the helper processes of its trainings.

    If a training's driver dies, a helper frees its resources. For that it asks the dashboard. Without the address, it
    does not find the dashboard if another Ray runs on this machine.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE  # not Ray's public API; only sweeps need it

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


@contextlib.contextmanager
def ray_cluster(options: WorkerOptions, *, dashboard: bool = False, dry_run: bool = False) -> Iterator[list[Node]]:
    """Runs Ray, or joins a cluster, until the context ends. Yields the nodes. See start_ray.

    dry_run: Ray is not started on this machine; the node is the one that this Ray would have.
    """
    had_ray = _has_ray()
    if options.address:
        _require_ray(options.address)
    if had_ray and options.address:
        raise InputError(f"this process already runs Ray; leave out --ray-address {options.address!r} to use that Ray")
    if options.address or not dry_run:
        start_ray(options, dashboard=dashboard)
    try:
        with terminated_as_interrupted():
            yield _nodes() if _has_ray() else [this_machine(options.num_workers)]
    finally:
        if not had_ray:
            _stop_ray()


def start_ray(options: WorkerOptions, *, dashboard: bool = False) -> None:
    """Starts Ray on this machine, or joins the cluster at options.address, unless this process has a Ray.

    On this machine, a CPU worker counts as one CPU even if there are fewer cores than workers. dashboard: for a Ray
    that several trainings share; Ray Train needs it to free the resources of a training whose driver died.
    Raises InputError if the cluster cannot be joined, RunError if Ray does not start here.
    """
    global _has_own_ray
    import ray

    prepare_process(options)
    if ray.is_initialized():
        return
    ours: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address:
        ours["address"] = options.address
    else:  # a new Ray, even if another cluster runs or ran on this machine
        cpus = this_machine(options.num_workers).cpus
        ours |= {"address": "local", "include_dashboard": dashboard, "num_cpus": int(cpus), **_short_directory()}
    try:
        with kept_sigterm():
            ray.init(**ours)
        _has_own_ray = not options.address
    except Exception as error:  # Ray raises errors of many classes
        reason = first_line(error)
        if not options.address:
            raise RunError(f"Ray did not start on this machine: {reason}; if it is busy, try again later") from error
        way_out = "if the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (docs/cluster.md)"
        raise InputError(f"could not join Ray at --ray-address {options.address!r}: {reason}; {way_out}") from error


def _short_directory() -> dict[str, str]:
    """Ray's argument for a directory of its own if its usual one is too long, as with TMPDIR of some batch systems.

    Ray puts sockets below it, whose paths have at most 107 characters. Raises InputError if RAY_TMPDIR is too long.
    """
    given = os.environ.get("RAY_TMPDIR", "")
    if len(given or tempfile.gettempdir()) <= LONGEST_DIRECTORY:
        return {}
    if given:
        what = (
            f"RAY_TMPDIR is {given!r}; Ray puts sockets there, so it must have at most {LONGEST_DIRECTORY} characters"
        )
        raise InputError(f"{what}; set it to a shorter directory")
    return {"_temp_dir": f"/tmp/ray-{os.getuid()}"}


def has_own_ray() -> bool:
    """Whether this process started its Ray. Such a Ray ends with the process and trains one model at a time."""
    return _has_own_ray


def _stop_ray() -> None:
    global _has_own_ray
    if _has_ray():
        sys.modules["ray"].shutdown()
    _has_own_ray = False


def _has_ray() -> bool:
    """Whether this process runs Ray or is part of a Ray cluster. Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _nodes() -> list[Node]:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(found.get("CPU", 0), found.get("GPU", 0)) for found in alive]


def _require_ray(address: str) -> None:
    """Raises InputError if nothing listens at host:port. Ray itself would keep trying for many minutes."""
    if address == "auto":
        return
    way_out = "correct --ray-address, or leave it out to start Ray on this machine"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray-address is {address!r}; it must be <host>:<port> or auto; {way_out}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at --ray-address {address!r} ({error}); {way_out}") from error
