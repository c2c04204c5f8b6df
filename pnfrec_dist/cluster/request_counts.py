"""Counts of a server's requests: each replica adds its own, and an actor tells their sum as Prometheus metrics."""

import bisect
import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Bounds of the histogram of waiting and ranking."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Bounds of the histogram of requests that were ranked together."""
SILENT_SECONDS = 5.0
"""A replica that has added nothing for so long does not count as running; each adds once a second."""


@dataclass
class Histogram:
    """Counts of values by bounds; the last count is of those above all."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def see(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: "Histogram") -> None:
        self.counts = [own + more for own, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def family(self, name: str, help_text: str) -> HistogramMetricFamily:
        found = HistogramMetricFamily(name, help_text)
        running, buckets = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            buckets.append((str(bound) if bound != float("inf") else "+Inf", running))
        found.add_metric([], buckets, self.total)
        return found


@dataclass
class Counts:
    """What one replica has counted since it last added it."""

    of_status: dict[int, int] = field(default_factory=dict)
    """HTTP status -> requests"""
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """of each request, in the replica"""
    batches: Histogram = field(default_factory=lambda: Histogram(BATCHES))

    def see(self, status: int, seconds: float) -> None:
        self.of_status[status] = self.of_status.get(status, 0) + 1
        self.seconds.see(seconds)

    def add(self, other: "Counts") -> None:
        for status, count in other.of_status.items():
            self.of_status[status] = self.of_status.get(status, 0) + count
        self.seconds.add(other.seconds)
        self.batches.add(other.batches)


class CountBoard:
    """The sum over all replicas, also over those that have ended. It runs as an actor."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.seen: dict[str, tuple[float, str]] = {}
        """replica -> (when it last added, its model)"""

    def add(self, replica: str, model: str, counts: Counts) -> None:
        self.counts.add(counts)
        self.seen[replica] = (time.monotonic(), model)

    def running(self) -> dict[str, int]:
        """Model -> running replicas that have it."""
        models = [model for at, model in self.seen.values() if time.monotonic() - at < SILENT_SECONDS]
        return {model: models.count(model) for model in sorted(set(models))}

    def text(self) -> bytes:
        """In Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> list[Metric]:
        requests = CounterMetricFamily("pnfrec_requests", "answered requests", labels=["status"])
        for status, count in sorted(self.counts.of_status.items()):
            requests.add_metric([str(status)], count)
        replicas = GaugeMetricFamily("pnfrec_replicas", "running replicas by model", labels=["model"])
        for model, count in self.running().items():
            replicas.add_metric([model], count)
        seconds = self.counts.seconds.family("pnfrec_request_seconds", "seconds of a request in its replica")
        batches = self.counts.batches.family("pnfrec_batch_requests", "requests that were ranked together")
        return [requests, replicas, seconds, batches]
