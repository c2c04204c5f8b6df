"""System metrics of the driver's machine, measured by MLflow's monitors and kept as records like all others."""

import contextlib
import threading
from typing import Any

import psutil

from pnfrec_dist.tracking.run import TrackedRun

SAMPLE_SECONDS, SAMPLES = 5.0, 6
"""Seconds between samples; samples whose mean is one point. Workers on other machines are not measured."""


class MachineMetrics:
    """Logs system/* from a thread until the context ends. MLflow shows them under System metrics."""

    def __init__(self, tracked: TrackedRun) -> None:
        self.tracked = tracked
        self._monitors: list[Any] = []
        self._points = sum(record["key"].startswith("system/") for record in tracked.spool.records)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine-metrics", daemon=True)

    def __enter__(self) -> "MachineMetrics":
        psutil.cpu_percent()  # the first reading is useless: it covers no period
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        self._monitors = _monitors()
        taken = 0
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()
            taken += 1
            if taken == SAMPLES:
                self._log()
                taken = 0
        if not self._points and not taken:  # so that a short training has one point
            self._sample()
            taken += 1
        if taken:
            self._log()

    def _sample(self) -> None:
        for monitor in self._monitors:
            monitor.collect_metrics()

    def _log(self) -> None:
        found = {f"system/{k}": float(v) for m in self._monitors for k, v in m.aggregate_metrics().items()}
        for monitor in self._monitors:
            monitor.clear_metrics()
        self.tracked.log_metrics(f"system/{self._points}", found, self._points)
        self._points += 1


def _monitors() -> list[Any]:
    """Called in the thread, because MLflow takes seconds to import."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # nvidia-ml-py is not installed, or there is no GPU
        monitors.append(GPUMonitor())
    return monitors
