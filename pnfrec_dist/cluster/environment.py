"""Environment variables that Ray reads. This module does not import Ray, because commands call
stay_on_this_machine before Ray is imported."""

import os

SINGLE_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, it works on every system: with 0, Ray is a single node that listens on loopback only."""
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
"""Ray reads these when it starts: no usage report, no unused worker processes, no Ray Train services that are not used
here, frequent polling, enough time for workers to start. Variables that the user has set are kept."""


def stay_on_this_machine(ray_address: str) -> None:
    """Makes the Ray that this process starts listen on loopback only. Does nothing if ray_address names a cluster."""
    if not ray_address:
        os.environ.setdefault(SINGLE_NODE, "0")
