"""The service: inputs of a model in, outputs of the model out, through the cache and the micro-batcher."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from opentelemetry import trace

from metaspec_contract.model import COTANGENT, SPECTRA
from metaspec_server.core.cache import ResultCache, keys
from metaspec_server.core.errors import EngineFailure, OutOfRange, TooManyStructures
from metaspec_server.core.memory import MemoryBudget
from metaspec_server.core.priority import DEFAULT_PRIORITY
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import Load, ServedModel
from metaspec_server.core.shared_memory import SharedMemory
from metaspec_server.core.tensors import Rows, count, is_packed, total_bytes
from metaspec_server.core.threads import off_loop
from metaspec_server.repository import NothingToServe, find_models
from metaspec_server.settings import Settings

__all__ = ["ModelState", "Monitor", "Service"]

log = logging.getLogger(__name__)
tracer = trace.get_tracer("metaspec_server")  # its spans are dropped unless `ops.telemetry` sets up an exporter


class Monitor(Protocol):
    """Counts the work of a service."""

    def answered(self, model: str, version: int, structures: int) -> None:
        """Structures of a request have been answered."""
        ...

    def looked_up(self, model: str, hits: int, misses: int) -> None:
        """Structures have been looked up in the cache."""
        ...

    def load_failed(self, model: str) -> None:
        """A version could not be loaded."""
        ...

    def engines_replaced(self, model: str, number: int) -> None:
        """Dead engines have been replaced."""
        ...


@dataclass(frozen=True)
class ModelState:
    """State of a loaded version.

    Attributes:
        name: name of the model.
        version: number of the version.
        waiting: number of structures in its queue.
        engines: number of engines that take work.
        is_default: whether callers who name no version get this one.
        busy: seconds for which each engine has been computing, by its name; 0 for one that is idle.
        abandoned: number of engines that were given up and go on computing.
    """

    name: str
    version: int
    waiting: int
    engines: int
    is_default: bool
    weights: str
    busy: dict[str, float] = field(default_factory=dict)
    abandoned: int = 0


class Service:
    """The models of a repository. Each computes as soon as `load_models` has loaded it.

    Args:
        settings: settings of the server.
        load: function that loads a version with the engine that the settings name.
        monitor: counters.

    Attributes:
        settings: settings of the server.
        registry: the served models.
        memory: memory of all requests in flight.
        shared_memory: regions of shared memory that callers have registered.
        draining: whether it is about to be closed. It still computes, but is not ready any more.

    Raises:
        RepositoryError: there is no such folder.
        NothingToServe: there is no model in it, or not one that the settings name.
    """

    def __init__(self, settings: Settings, load: Load, monitor: Monitor) -> None:
        self.settings, self._monitor = settings, monitor
        self.registry = Registry(
            settings.repository,
            settings.keep_versions,
            load,
            settings.shutdown_timeout,
            self._load_failed,
            settings.models,
            settings.load_deadline,
        )
        self.memory = MemoryBudget(settings.memory_mb * 2**20)
        self.shared_memory = SharedMemory()
        self._cache = ResultCache(settings.cache_mb * 2**20) if settings.cache_mb else None
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False
        self.draining = False
        there = find_models(settings.repository)
        if not there:
            raise NothingToServe(f"{settings.repository}: no models in it; expected <model>/<version>/model.onnx")
        if absent := sorted(set(settings.models) - there.keys()):
            raise NothingToServe(
                f"--models: no model {absent[0]!r} in {settings.repository}, there is {', '.join(there)}"
            )
        self.registry.expect(settings.models or there)

    @classmethod
    async def start(cls, settings: Settings, load: Load, monitor: Monitor) -> Service:
        """A service whose models are all loaded.

        Raises:
            RepositoryError, NothingToServe: see `Service` and `load_models`.
        """
        service = cls(settings, load, monitor)
        try:
            await service.load_models()
        except BaseException:
            await service.close()
            raise
        return service

    async def load_models(self, loaded: Callable[[ServedModel], None] = lambda model: None) -> None:
        """Load and warm up every model, the default one and its gradient model first, and watch them from then on.

        One after the other: an engine's threads use all cores, so that the first is ready sooner than it would be among others.

        Args:
            loaded: function called with the default version of each model once it takes work.

        Raises:
            NothingToServe: no model can be served; a front of Tritons waits for them instead.
        """
        registry = self.registry

        def updated(name: str) -> None:
            for model in registry.newest():
                if model.name == name:
                    loaded(model)

        self._tasks.append(asyncio.create_task(registry.supervise(1.0, self._monitor.engines_replaced)))
        await registry.refresh(updated)
        failures = registry.failures()
        waits = self.settings.engine == "triton" and self.settings.poll_interval > 0  # for Tritons that start, too
        if not registry.served() and not waits:
            raise NothingToServe(failures[0][2] if failures else f"{self.settings.repository}: its models are gone")
        self._started = True
        for failure in failures:
            self._load_failed(*failure)
        if self.settings.poll_interval:
            self._tasks.append(asyncio.create_task(registry.watch(self.settings.poll_interval)))

    @property
    def ready(self) -> bool:
        """Whether every model is loaded, and its default version takes work on all its engines."""
        return not self.why_not_ready()

    def why_not_ready(self) -> str:
        """What the service is not ready for, for people; empty if it is ready."""
        models, expected = self.registry.newest(), self.registry.expected
        if self.draining:
            return "the server is shutting down"
        if expected:
            return f"{len(models)} of {len(models) + len(expected)} models are loaded, not yet {', '.join(expected)}"
        if stuck := [f"{model.name} version {model.version}" for model in models if not model.ready]:
            return f"engines do not take work: {', '.join(stuck)}"
        return "" if models else "no model is served"

    @property
    def limit(self) -> int:
        """Largest number of structures in one request."""
        return min(self.settings.max_structures, self.settings.max_queue)

    @property
    def cache_bytes(self) -> int:
        """Size of the result cache in bytes."""
        return self._cache.nbytes if self._cache else 0

    def states(self) -> list[ModelState]:
        """State of each loaded version."""
        newest = self.registry.newest()
        return [
            ModelState(
                name=model.name,
                version=model.version,
                waiting=model.queue.waiting,
                engines=model.queue.engines,
                is_default=model in newest,
                weights=str((model.about.metadata.model_extra or {}).get("weights_sha256", "")),
                busy=model.queue.busy,
                abandoned=model.queue.abandoned,
            )
            for model in self.registry.served()
        ]

    async def infer(
        self, model: ServedModel, rows: Rows, timeout: float | None = None, priority: int = DEFAULT_PRIORITY
    ) -> Rows:
        """Outputs of a model, computed or from the cache.

        Args:
            model: leased model.
            rows: all its inputs; the structure as `core.tensors.compact` makes it.
            timeout: seconds to compute it, if they are fewer than those of the settings.
            priority: 1 for an interactive request, which goes ahead of others; see `MicroBatcher.submit`.

        Raises:
            ServiceError: too many structures, a full queue, a failed engine, or any other error of `core.errors`.
        """
        size = count(rows)
        if size > self.limit:
            raise TooManyStructures(size, self.limit)
        timeout = min(timeout or math.inf, self.settings.request_timeout)
        with model.statistics.request():
            if self._cache is None or not is_packed(rows[model.structure.name], model.structure):
                results = await self._compute(model, rows, timeout, priority)
            else:
                results = await self._look_up(self._cache, model, rows, timeout, priority)
        self._monitor.answered(model.name, model.version, size)
        return results

    async def close(self, timeout: float | None = None) -> None:
        """Finish accepted work and stop.

        Args:
            timeout: seconds to finish it; those of the settings by default.
        """
        for task in self._tasks:
            task.cancel()
        await self.registry.close(self.settings.shutdown_timeout if timeout is None else timeout)

    async def _look_up(self, cache: ResultCache, model: ServedModel, rows: Rows, timeout: float, priority: int) -> Rows:
        """Outputs from the cache, and the missing ones computed, each of equal ones once."""
        size, nbytes = count(rows), total_bytes(rows)
        started = time.perf_counter()
        row_keys, found = await off_loop(nbytes, _find, cache, model, rows)
        missing = [n for n, row in enumerate(found) if row is None]
        first: dict[bytes, int] = {}  # of equal rows, the one that is computed
        for n in missing:
            first.setdefault(row_keys[n], n)
        model.statistics.looked_up(len(first), time.perf_counter() - started)
        self._monitor.looked_up(model.name, size - len(first), len(first))
        computed: Rows = {}
        if first:
            new_keys, chosen = list(first), list(first.values())
            new = rows if len(first) == size else {name: array[chosen] for name, array in rows.items()}
            computed = await self._compute(model, new, timeout, priority, new_keys)
            await off_loop(nbytes, cache.put, model.number, new_keys, computed)
        if len(first) == size:
            return computed
        places = {key: place for place, key in enumerate(first)}
        copied = [places[row_keys[n]] for n in missing]
        results = {}
        for spec in model.about.outputs:
            results[spec.name] = np.empty((size, *spec.shape), spec.dtype)
            for n, row in enumerate(found):
                if row is not None:
                    results[spec.name][n] = row[spec.name]
            if missing:
                results[spec.name][missing] = computed[spec.name][copied]
        return results

    async def _compute(
        self,
        model: ServedModel,
        rows: Rows,
        timeout: float,
        priority: int,
        row_keys: Sequence[bytes] | None = None,
    ) -> Rows:
        with tracer.start_as_current_span(f"compute {model.name}") as span:
            span.set_attributes({"metaspec.version": model.version, "metaspec.structures": count(rows)})
            results = await model.queue.submit(rows, timeout, row_keys, priority)
        await off_loop(total_bytes(results) // 4, _check_finite, results, rows)  # numbers of four bytes
        return results

    def _load_failed(self, name: str, version: int, reason: str) -> None:
        if self._started:  # before, `load_models` reports the failures once it knows that anything can be served
            self._monitor.load_failed(name)
            served = any(model.name == name and version in (0, model.version) for model in self.registry.served())
            state = "stays as it was loaded" if served else "is not served"
            log.error("%s %s: %s", f"{name} version {version}" if version else name, state, reason)


def _check_finite(results: Rows, rows: Rows) -> None:
    for name, array in results.items():
        if not (np.isfinite(array.max()) and np.isfinite(array.min())):  # both are NaN where one number is
            if name == SPECTRA:
                raise EngineFailure(f"the model's {name} are not finite numbers")
            largest = np.abs(rows[COTANGENT]).max()
            raise OutOfRange(f"{name}: exceeds float32 for a cotangent of up to {largest:.3g}: divide it by a constant")


def _find(cache: ResultCache, model: ServedModel, rows: Rows) -> tuple[list[bytes], list[Rows | None]]:
    row_keys = keys({spec.name: rows[spec.name] for spec in model.about.inputs})  # in one order, however they came
    return row_keys, cache.get(model.number, row_keys)
