"""What Ray reads from the environment. This module does not import Ray: commands call
stay_on_this_machine first."""

import os

SINGLE_NODE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Despite its name, off it makes Ray a single node on any system, which listens on loopback alone."""
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
"""Read when Ray starts: no usage report, no processes that no worker takes, none of Ray Train's services that are not
used here, quick polling, patience at the start of workers. What the user has set stays."""


def stay_on_this_machine(ray_address: str) -> None:
    """Makes a Ray that this process starts listen on loopback alone. ray_address: of a cluster to join; empty: none."""
    if not ray_address:
        os.environ.setdefault(SINGLE_NODE, "0")
