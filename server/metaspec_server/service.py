"""The models that are served: each an engine behind its micro-batcher, found by name and version."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from metaspec_server.batching import Closed, DeadlineExceeded, EngineFailure, MicroBatcher, QueueFull
from metaspec_server.engines import Engine, OnnxEngine, Rows, warm_up
from metaspec_server.problems import Problem
from metaspec_server.repository import find_models
from metaspec_server.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """A loaded model version, ready to compute."""

    name: str
    version: int
    engine: Engine
    batcher: MicroBatcher


class Service:
    """Loads every model of the repository and computes requests.

    Raises:
        RepositoryError: the repository, or a model in it, cannot be served.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.models: dict[str, ServedModel] = {}
        for file in find_models(settings.repository):
            engine = OnnxEngine(file, settings.threads)
            warm_up(engine, (1, settings.max_batch))
            batcher = MicroBatcher(engine.run, settings.max_batch, settings.max_queue, name=f"engine {file.name}")
            self.models[file.name] = ServedModel(file.name, file.version, engine, batcher)

    @property
    def ready(self) -> bool:
        """Whether every model takes work."""
        return all(model.batcher.alive for model in self.models.values())

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """A model by name, and version if given.

        Raises:
            Problem: 404, there is none.
        """
        model = self.models.get(name)
        if model is None:
            raise Problem(404, f"no model {name!r} here; there is {', '.join(self.models)}")
        if version is not None and version != str(model.version):
            raise Problem(404, f"model {name!r} has no version {version!r} here; there is {model.version}")
        return model

    async def infer(self, model: ServedModel, rows: Rows) -> Rows:
        """Compute rows.

        Raises:
            Problem: 413 too many structures, 422 values that are no density, 503 the queue is full or the server is
                shutting down, 504 too late, 500 the engine failed.
        """
        limit, structures = self.settings.max_structures, rows[model.engine.metadata.input.name]
        if len(structures) > limit:
            raise Problem(
                413, f"at most {limit} structures in one request, got {len(structures)}: send several requests"
            )
        low, high = float(np.min(structures)), float(np.max(structures))
        if not (low >= 0 and high <= 1):
            name = model.engine.metadata.input.name
            detail = f"{name}: expected values from 0 (void) to 1 (solid), got values from {low:g} to {high:g}"
            raise Problem(422, detail, field=name)
        try:
            return await model.batcher.submit(rows, self.settings.request_timeout)
        except QueueFull as error:
            raise Problem(
                503, f"{error}; try again later", headers={"Retry-After": f"{error.retry_after:.0f}"}
            ) from None
        except Closed as error:
            raise Problem(503, str(error), headers={"Retry-After": "5"}) from None
        except DeadlineExceeded as error:
            raise Problem(504, str(error)) from None
        except EngineFailure as error:
            raise Problem(500, str(error)) from None

    async def close(self) -> None:
        """Finish accepted work and stop."""
        timeout = self.settings.shutdown_timeout
        await asyncio.gather(*(model.batcher.close(timeout) for model in self.models.values()))
