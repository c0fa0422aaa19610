"""The service: requests for rows of a model in, results or a problem out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.structures import pack_binary
from metaspec_server.core.batching import Closed, DeadlineExceeded, EngineFailure, EngineUnavailable, QueueFull
from metaspec_server.core.cache import KEY, ResultCache, keys
from metaspec_server.core.registry import Registry, ServedModel
from metaspec_server.core.tensors import Rows, count, is_packed
from metaspec_server.core.threads import off_loop
from metaspec_server.engines.factory import onnx_loader
from metaspec_server.http.problems import Problem
from metaspec_server.ops.metrics import Metrics, State
from metaspec_server.ops.telemetry import tracer
from metaspec_server.repository import ModelFile, NothingToServe
from metaspec_server.settings import Settings

log = logging.getLogger(__name__)


class Service:
    """The models of a repository, ready to compute. Made by `start`."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.registry = Registry(
            settings.repository,
            settings.keep_versions,
            _loader(settings)(settings, self.metrics),
            settings.shutdown_timeout,
            self._failed,
        )
        self._cache = ResultCache(settings.cache_mb * 2**20) if settings.cache_mb else None
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics.watch(self._states, lambda: self._cache.nbytes if self._cache else 0)

    @classmethod
    async def start(cls, settings: Settings) -> Service:
        """Load and warm every model of the repository, and keep an eye on them.

        Raises:
            RepositoryError: there is no such folder.
            NothingToServe: no model in it can be served.
        """
        service = cls(settings)
        registry = service.registry
        await registry.refresh()
        failures = registry.failures()
        if not registry.served():
            missing = f"{settings.repository}: no models in it; expected <model>/<version>/model.onnx"
            raise NothingToServe(failures[0][2] if failures else missing)
        service._tasks = [asyncio.create_task(registry.supervise(1.0, service._revived))]
        for failure in failures:
            service._failed(*failure)
        if settings.poll_interval:
            service._tasks.append(asyncio.create_task(registry.watch(settings.poll_interval)))
        return service

    @property
    def ready(self) -> bool:
        """Whether there are models, and the newest version of each takes work on all its engines."""
        models = self.registry.newest()
        return bool(models) and all(model.ready for model in models)

    async def infer(self, model: ServedModel, rows: Rows) -> Rows:
        """Compute rows, or look them up.

        Args:
            model: leased.
            rows: the tensors that it takes; the structure may be packed bits.

        Raises:
            Problem: 413 too many structures, 422 values that are no density, 503 the queue is full or the server is
                shutting down, 504 too late, 500 the engine failed.
        """
        size, limit = count(rows), min(self.settings.max_structures, self.settings.max_queue)
        if size > limit:
            raise Problem(413, f"at most {limit} structures in one request, got {size}: send several requests")
        name = model.structure.name
        nbytes = sum(array.nbytes for array in rows.values())
        rows = rows | {name: await off_loop(nbytes, _admit, model, rows[name])}
        if self._cache is None or not is_packed(rows[name], model.structure):
            results = await self._compute(model, rows)
        else:
            results = await self._look_up(self._cache, model, rows)
        self.metrics.structures.labels(model.name, model.version).inc(size)
        return results

    async def close(self) -> None:
        """Finish accepted work and stop."""
        for task in self._tasks:
            task.cancel()
        await self.registry.close(self.settings.shutdown_timeout)

    async def _look_up(self, cache: ResultCache, model: ServedModel, rows: Rows) -> Rows:
        """What the cache has from the cache, the rest computed."""
        size, nbytes = count(rows), sum(array.nbytes for array in rows.values())
        row_keys, found = await off_loop(nbytes, _find, cache, model, rows)
        missing = [n for n, row in enumerate(found) if row is None]
        self.metrics.cache_hits.labels(model.name).inc(size - len(missing))
        self.metrics.cache_misses.labels(model.name).inc(len(missing))
        computed: Rows = {}
        if missing:
            new = [row_keys[n] for n in missing]
            some = rows if len(missing) == size else {name: array[missing] for name, array in rows.items()}
            computed = await self._compute(model, some | {KEY: np.array(new, object)})
            await off_loop(nbytes, cache.put, model.number, new, computed)
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

    async def _compute(self, model: ServedModel, rows: Rows) -> Rows:
        try:
            with tracer.start_as_current_span(f"compute {model.name}") as span:
                span.set_attributes({"metaspec.version": model.version, "metaspec.structures": count(rows)})
                return await model.queue.submit(rows, self.settings.request_timeout)
        except QueueFull as error:
            raise Problem(
                503, f"{error}; try again later", headers={"Retry-After": f"{error.retry_after:.0f}"}
            ) from None
        except Closed as error:
            raise Problem(503, str(error), headers={"Retry-After": "5"}) from None
        except EngineUnavailable as error:
            raise Problem(503, str(error), headers={"Retry-After": "2"}) from None
        except DeadlineExceeded as error:
            raise Problem(504, str(error)) from None
        except EngineFailure as error:
            raise Problem(500, str(error)) from None

    def _failed(self, name: str, version: int, reason: str) -> None:
        if self._tasks:  # before, there is no server yet that goes on without this version
            self.metrics.load_failures.labels(name).inc()
            log.error("%s is not served: %s", f"{name} version {version}" if version else name, reason)

    def _revived(self, name: str, number: int) -> None:
        self.metrics.engine_restarts.labels(name).inc(number)

    def _states(self) -> list[State]:
        newest = self.registry.newest()
        return [
            (model.name, model.version, model.queue.waiting, model.queue.engines, model in newest)
            for model in self.registry.served()
        ]


def _loader(settings: Settings) -> Callable[[Settings, Metrics], Callable[[ModelFile], ServedModel]]:
    if settings.engine == "onnxruntime":
        return onnx_loader
    try:
        from metaspec_server.engines.triton import triton_loader
    except ImportError as error:
        raise NothingToServe(f"--engine triton needs {error.name}: pip install 'metaspec[triton]'") from None
    return triton_loader


def _admit(model: ServedModel, structures: NDArray[Any]) -> NDArray[Any]:
    """Structures as they wait: as packed bits if they are binary.

    Raises:
        Problem: 422, values that are no density.
    """
    spec = model.structure
    if is_packed(structures, spec):
        return structures
    packed = pack_binary(structures)
    if packed is not None:
        return packed
    low, high = float(np.min(structures)), float(np.max(structures))
    if not (low >= 0 and high <= 1):
        detail = f"{spec.name}: expected values from 0 (void) to 1 (solid), got values from {low:g} to {high:g}"
        raise Problem(422, detail, field=spec.name)
    return structures


def _find(cache: ResultCache, model: ServedModel, rows: Rows) -> tuple[list[bytes], list[Rows | None]]:
    row_keys = keys(rows)
    return row_keys, cache.get(model.number, row_keys)
