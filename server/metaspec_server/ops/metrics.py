"""What Prometheus is told: requests, queue, micro-batches, cache and models."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from metaspec_server.core.batching import MicroBatch

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

State = tuple[str, int, int, int, bool]
"""Name and version of a model, structures that wait, engines that work, and whether it is the version served by default."""


class Metrics:
    """Counters of one server. Each server has its own registry, so that several fit in a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"metaspec_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"metaspec_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.request_seconds = histogram("request_seconds", "Time to answer a request.", _SECONDS, "route")
        self.structures = counter("structures", "Structures answered.", "model", "version")
        self.cache_hits = counter("cache_hits", "Structures answered from the cache.", "model")
        self.cache_misses = counter("cache_misses", "Binary structures that were not in the cache.", "model")
        self.queue_seconds = histogram("queue_seconds", "Time from arrival to an engine.", _SECONDS, "model")
        self.compute_seconds = histogram("compute_seconds", "Time of a micro-batch.", _SECONDS, "model")
        self.batch_size = histogram("batch_size", "Structures in a micro-batch.", _ROWS, "model")
        self.engine_errors = counter("engine_errors", "Micro-batches that failed.", "model")
        self.engine_restarts = counter("engine_restarts", "Engines replaced after their thread died.", "model")
        self.load_failures = counter("load_failures", "Model versions that could not be loaded.", "model")

    def observe(self, model: str) -> Callable[[MicroBatch], None]:
        """What a micro-batcher of a model is to call."""
        waited, seconds = self.queue_seconds.labels(model), self.compute_seconds.labels(model)
        size, errors = self.batch_size.labels(model), self.engine_errors.labels(model)

        def observe(batch: MicroBatch) -> None:
            for wait in batch.waited:
                waited.observe(wait)
            seconds.observe(batch.seconds)
            size.observe(batch.rows)
            errors.inc(batch.failed)

        return observe

    def watch(self, states: Callable[[], list[State]], cache_bytes: Callable[[], int]) -> None:
        """Tell, at every scrape, what the models and the cache look like just then."""
        self.registry.register(_Models(states, cache_bytes))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Models(Collector):
    def __init__(self, states: Callable[[], list[State]], cache_bytes: Callable[[], int]) -> None:
        self._states, self._cache_bytes = states, cache_bytes

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges, one sample for each version that is loaded."""
        labels = ["model", "version"]
        depth = GaugeMetricFamily("metaspec_queue_depth", "Structures that wait.", labels=labels)
        engines = GaugeMetricFamily("metaspec_engines", "Engines that take work.", labels=labels)
        default = GaugeMetricFamily("metaspec_model_version", "Version served by default.", labels=["model"])
        for name, version, waiting, working, is_default in self._states():
            depth.add_metric([name, str(version)], waiting)
            engines.add_metric([name, str(version)], working)
            if is_default:
                default.add_metric([name], version)
        cache = GaugeMetricFamily("metaspec_cache_bytes", "Size of the cache.", value=self._cache_bytes())
        return [depth, engines, default, cache]
