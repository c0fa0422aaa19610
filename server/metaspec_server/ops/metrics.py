"""Prometheus metrics: requests, queue, micro-batches, cache, models, and the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metaspec_server import __version__
from metaspec_server.core.batching import MicroBatch
from metaspec_server.core.service import ModelState

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")  # one package, for a CPU or for a GPU


class Metrics:
    """Metrics of one server, a `Monitor` of its service. Each has its own registry, so that several fit in a process.

    Counters of a model exist from when it is loaded, at 0: a rate of them sees the first failure, too.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"metaspec_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"metaspec_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        self.requests = counter("requests", "Requests answered.", "route", "status")
        self.request_seconds = histogram("request_seconds", "Time to answer a request.", _SECONDS, "route")
        self.structures = counter("structures", "Structures answered.", "model", "version")
        self.cache_hits = counter(
            "cache_hits", "Structures answered from the cache, or by an equal one of their request.", "model"
        )
        self.cache_misses = counter("cache_misses", "Different binary structures that were not in the cache.", "model")
        self.queue_seconds = histogram("queue_seconds", "Time from arrival to an engine.", _SECONDS, "model")
        self.compute_seconds = histogram("compute_seconds", "Time of a micro-batch.", _SECONDS, "model")
        self.batch_size = histogram(
            "batch_size", "Structures that the model computed in a micro-batch.", _ROWS, "model"
        )
        self.engine_errors = counter("engine_errors", "Micro-batches that failed.", "model")
        self.engine_restarts = counter("engine_restarts", "Engines replaced after they died or hung.", "model")
        self.load_failures = counter("load_failures", "Model versions that could not be loaded.", "model")
        self._states: Callable[[], list[ModelState]] = list
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def answered(self, model: str, version: int, structures: int) -> None:
        """Count answered structures."""
        self.structures.labels(model, version).inc(structures)

    def looked_up(self, model: str, hits: int, misses: int) -> None:
        """Count structures that were looked up in the cache."""
        self.cache_hits.labels(model).inc(hits)
        self.cache_misses.labels(model).inc(misses)

    def load_failed(self, model: str) -> None:
        """Count a version that could not be loaded."""
        self.load_failures.labels(model).inc()

    def engines_replaced(self, model: str, number: int) -> None:
        """Count engines that were replaced."""
        self.engine_restarts.labels(model).inc(number)

    def observe(self, model: str) -> Callable[[MicroBatch], None]:
        """Function that counts the micro-batches of a model."""
        waited, seconds = self.queue_seconds.labels(model), self.compute_seconds.labels(model)
        size, errors = self.batch_size.labels(model), self.engine_errors.labels(model)

        def observe(batch: MicroBatch) -> None:
            for wait in batch.waited:
                waited.observe(wait)
            seconds.observe(batch.seconds)
            size.observe(batch.computed)
            errors.inc(batch.failed)

        return observe

    def expect(self, route: str, statuses: Iterable[int]) -> None:
        """Count the requests of a route, or of a method of gRPC, from 0 for each of these statuses."""
        for status in statuses:
            self.requests.labels(route, status)

    def watch(
        self, states: Callable[[], list[ModelState]], cache_bytes: Callable[[], int], unreadable: Callable[[], int]
    ) -> None:
        """Report the state of the models, the size of the cache and the health of the repository at every scrape."""
        self._states = states
        self.registry.register(_Models(states, cache_bytes, unreadable))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        for state in self._states():
            self.structures.labels(state.name, state.version)
            for of_model in (self.cache_hits, self.cache_misses, self.engine_restarts, self.load_failures):
                of_model.labels(state.name)
        return generate_latest(self.registry)


class _Models(Collector):
    def __init__(
        self, states: Callable[[], list[ModelState]], cache_bytes: Callable[[], int], unreadable: Callable[[], int]
    ) -> None:
        self._states, self._cache_bytes, self._unreadable = states, cache_bytes, unreadable

    def collect(self) -> Iterable[Metric]:
        """The gauges, with a sample for each loaded version."""
        labels = ["model", "version"]
        depth = GaugeMetricFamily("metaspec_queue_depth", "Structures that are waiting.", labels=labels)
        engines = GaugeMetricFamily("metaspec_engines", "Engines that take work.", labels=labels)
        busy = GaugeMetricFamily(
            "metaspec_engine_busy_seconds",
            "Time for which an engine has been computing its micro-batch; 0 while it is idle.",
            labels=[*labels, "engine"],
        )
        abandoned = GaugeMetricFamily(
            "metaspec_engines_abandoned", "Engines that were given up and go on computing.", labels=labels
        )
        default = GaugeMetricFamily("metaspec_model_version", "Version served by default.", labels=["model"])
        info = GaugeMetricFamily(
            "metaspec_model_info", "1; SHA-256 of the weights, its first 12 digits.", labels=[*labels, "weights"]
        )
        for state in self._states():
            place = [state.name, str(state.version)]
            depth.add_metric(place, state.waiting)
            engines.add_metric(place, state.engines)
            abandoned.add_metric(place, state.abandoned)
            for engine, seconds in state.busy.items():
                busy.add_metric([*place, engine], seconds)
            info.add_metric([*place, state.weights[:12]], 1)
            if state.is_default:
                default.add_metric([state.name], state.version)
        cache = GaugeMetricFamily("metaspec_cache_bytes", "Size of the cache.", value=self._cache_bytes())
        unreadable = GaugeMetricFamily(
            "metaspec_repository_unreadable",
            "Models and versions in the repository that cannot be read; what was loaded from them is served.",
            value=self._unreadable(),
        )
        build = GaugeMetricFamily(
            "metaspec_build_info", "1; versions of the server and of ONNX Runtime.", labels=["version", "onnxruntime"]
        )
        build.add_metric([__version__, _runtime_version()], 1)
        return [depth, engines, busy, abandoned, default, info, cache, unreadable, build]


@cache
def _runtime_version() -> str:
    for package in _RUNTIMES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""
