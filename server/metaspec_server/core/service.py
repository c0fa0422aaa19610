"""The service: inputs of a model in, outputs of the model out, through the cache and the micro-batcher."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from opentelemetry import trace

from metaspec_contract.model import COTANGENT, GRADIENT
from metaspec_server.core.cache import ResultCache, keys
from metaspec_server.core.errors import EngineFailure, OutOfRange, TooManyStructures
from metaspec_server.core.memory import MemoryBudget
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import Load, ServedModel
from metaspec_server.core.tensors import Rows, count, is_packed
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
    """

    name: str
    version: int
    waiting: int
    engines: int
    is_default: bool


class Service:
    """The models of a repository, ready to compute. `start` makes one.

    Args:
        settings: settings of the server.
        load: function that loads a version with the engine that the settings name.
        monitor: counters.

    Attributes:
        settings: settings of the server.
        registry: the served models.
        memory: memory of all requests in flight.
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
        )
        self.memory = MemoryBudget(settings.memory_mb * 2**20)
        self._cache = ResultCache(settings.cache_mb * 2**20) if settings.cache_mb else None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: Settings, load: Load, monitor: Monitor) -> Service:
        """Load and warm up every model of the repository, and watch them from then on.

        Args:
            settings: settings of the server.
            load: function that loads a version with the engine that the settings name.
            monitor: counters.

        Raises:
            RepositoryError: there is no such folder.
            NothingToServe: no model in it can be served, or one that the settings name is not in it.
        """
        there = find_models(settings.repository)
        if absent := sorted(set(settings.models) - there.keys()):
            raise NothingToServe(
                f"--models: no model {absent[0]!r} in {settings.repository}, there is {', '.join(there)}"
            )
        service = cls(settings, load, monitor)
        registry = service.registry
        await registry.refresh()
        failures = registry.failures()
        if not registry.served():
            missing = f"{settings.repository}: no models in it; expected <model>/<version>/model.onnx"
            raise NothingToServe(failures[0][2] if failures else missing)
        service._tasks = [asyncio.create_task(registry.supervise(1.0, monitor.engines_replaced))]
        for failure in failures:
            service._load_failed(*failure)
        if settings.poll_interval:
            service._tasks.append(asyncio.create_task(registry.watch(settings.poll_interval)))
        return service

    @property
    def ready(self) -> bool:
        """Whether there are models, and the default version of each takes work on all its engines."""
        models = self.registry.newest()
        return bool(models) and all(model.ready for model in models)

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
            ModelState(model.name, model.version, model.queue.waiting, model.queue.engines, model in newest)
            for model in self.registry.served()
        ]

    async def infer(self, model: ServedModel, rows: Rows, timeout: float | None = None) -> Rows:
        """Outputs of a model, computed or from the cache.

        Args:
            model: leased model.
            rows: its inputs; the structure as `core.tensors.compact` makes it.
            timeout: seconds to compute it, if they are fewer than those of the settings.

        Raises:
            ServiceError: too many structures, a full queue, a failed engine, or any other error of `core.errors`.
        """
        size = count(rows)
        if size > self.limit:
            raise TooManyStructures(size, self.limit)
        timeout = min(timeout or math.inf, self.settings.request_timeout)
        if self._cache is None or not is_packed(rows[model.structure.name], model.structure):
            results = await self._compute(model, rows, timeout)
        else:
            results = await self._look_up(self._cache, model, rows, timeout)
        self._monitor.answered(model.name, model.version, size)
        return results

    async def close(self) -> None:
        """Finish accepted work and stop."""
        for task in self._tasks:
            task.cancel()
        await self.registry.close(self.settings.shutdown_timeout)

    async def _look_up(self, cache: ResultCache, model: ServedModel, rows: Rows, timeout: float) -> Rows:
        """Outputs from the cache, and the missing ones computed."""
        size, nbytes = count(rows), sum(array.nbytes for array in rows.values())
        row_keys, found = await off_loop(nbytes, _find, cache, model, rows)
        missing = [n for n, row in enumerate(found) if row is None]
        self._monitor.looked_up(model.name, size - len(missing), len(missing))
        computed: Rows = {}
        if missing:
            new_keys = [row_keys[n] for n in missing]
            new = rows if len(missing) == size else {name: array[missing] for name, array in rows.items()}
            computed = await self._compute(model, new, timeout, new_keys)
            await off_loop(nbytes, cache.put, model.number, new_keys, computed)
        if len(missing) == size:
            return computed
        results = {}
        for spec in model.about.outputs:
            results[spec.name] = np.empty((size, *spec.shape), spec.dtype)
            for n, row in enumerate(found):
                if row is not None:
                    results[spec.name][n] = row[spec.name]
            if missing:
                results[spec.name][missing] = computed[spec.name]
        return results

    async def _compute(
        self, model: ServedModel, rows: Rows, timeout: float, row_keys: Sequence[bytes] | None = None
    ) -> Rows:
        with tracer.start_as_current_span(f"compute {model.name}") as span:
            span.set_attributes({"metaspec.version": model.version, "metaspec.structures": count(rows)})
            results = await model.queue.submit(rows, timeout, row_keys)
        await off_loop(sum(array.nbytes for array in results.values()), _check_finite, results, rows)
        return results

    def _load_failed(self, name: str, version: int, reason: str) -> None:
        if self._tasks:  # before, the server has not started: `start` reports the failures
            self._monitor.load_failed(name)
            log.error("%s is not served: %s", f"{name} version {version}" if version else name, reason)


def _check_finite(results: Rows, rows: Rows) -> None:
    for name, array in results.items():
        if not (np.isfinite(array.max()) and np.isfinite(array.min())):  # both are NaN where one number is
            if name != GRADIENT:
                raise EngineFailure(f"the model's {name} are not finite numbers")
            largest = np.abs(rows[COTANGENT]).max()
            raise OutOfRange(f"{name}: exceeds float32 for a cotangent of up to {largest:.3g}: divide it by a constant")


def _find(cache: ResultCache, model: ServedModel, rows: Rows) -> tuple[list[bytes], list[Rows | None]]:
    row_keys = keys(rows)
    return row_keys, cache.get(model.number, row_keys)
