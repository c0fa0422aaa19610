"""The engine factory: from a model file to a served model, with the engine that the settings name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from metaspec_contract.files import stamp
from metaspec_server.blocking import in_thread
from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.cache import computing_repeats_once
from metaspec_server.core.lazy import LazyQueue
from metaspec_server.core.served_model import Load, Queue, ServedModel
from metaspec_server.core.statistics import Statistics
from metaspec_server.engines.onnx import OnnxEngine
from metaspec_server.engines.onnx_session import PROVIDERS, best_provider, describe
from metaspec_server.repository import ModelFile, RepositoryError
from metaspec_server.settings import Settings

__all__ = ["MissingEngine", "Observe", "engine_factory"]

log = logging.getLogger(__name__)

_CPU_BATCH = 4  # network passes: more than its caches hold make a CPU slower, and take memory
_CORE_BATCH = 2  # likewise, for one core of several at work
_GPU_BATCH = 32

Observe: TypeAlias = Callable[[str], Callable[[MicroBatch], None]]
"""For a model's name, the function that is called with each of its micro-batches."""


class MissingEngine(Exception):
    """The packages of the chosen engine are not installed. The message names the extra that brings them."""


def engine_factory(settings: Settings, observe: Observe) -> Load:
    """Function that loads a version with the engine that the settings name.

    Args:
        settings: settings of the server.
        observe: observer of micro-batches.

    Raises:
        MissingEngine: the packages of that engine are not installed.
    """
    if settings.engine == "onnxruntime":
        return _onnx(settings, observe)
    try:
        from metaspec_server.engines.triton import triton_loader
    except ImportError as error:
        raise MissingEngine(
            f"--engine triton needs {error.name}, which is not installed: pip install 'metaspec-server[triton]'"
        ) from None
    return triton_loader(settings, observe)


def _onnx(settings: Settings, observe: Observe) -> Load:
    """ONNX Runtime in this process: engines on each GPU, or on the CPU, behind one micro-batcher."""
    provider = best_provider() if settings.provider == "auto" else settings.provider

    def load(file: ModelFile, statistics: Statistics | None = None) -> ServedModel:
        statistics = statistics or Statistics()
        engines = _Engines(file, settings, provider, statistics.beside(observe(file.name)))
        return ServedModel(file, engines.about, engines.batcher, engines.wanted, engines.revive, statistics)

    return _on_first_use(load, provider, settings) if settings.lazy else load


class _Engines:
    """The engines of a model: `instances` on each GPU or on the CPU, or those that follow the load.

    These are one engine with all cores, and from the first time that a structure waits for each core, one more on each core.
    A server on which there is never so much to do is spared their memory. They share one session, and its weights.

    Args:
        file: file of the model.
        settings: settings of the server.
        provider: execution provider.
        observe: observer of micro-batches.

    Attributes:
        about: description of the model.
        batcher: queue of the model.
        wanted: number of engines without which the model is not ready.

    Raises:
        RepositoryError: the model cannot be loaded.
    """

    def __init__(
        self, file: ModelFile, settings: Settings, provider: str, observe: Callable[[MicroBatch], None]
    ) -> None:
        self._file, self._settings, self._provider = file, settings, provider
        self._places = _places(settings, provider)
        self._on_core: OnnxEngine | None = None
        self.wanted = len(self._places)
        engines = [self._engine_on(device) for device in self._places]
        self.about = engines[0].about
        name = f"{file.name} {file.version}"
        self.batcher = MicroBatcher(engines[0].max_batch, settings.max_queue, name, observe, settings.engine_deadline)
        for engine in engines:
            self._start(engine)
        if provider == "cpu" and settings.instances is None and settings.threads > 1:
            self.batcher.when_busy(settings.threads, lambda: in_thread(self._add_to_each_core))

    def revive(self) -> int:
        """Replace engines that are dead or overdue; returns their number. Blocks."""
        lost = self.batcher.give_up()
        for place in lost:
            if place < len(self._places):
                self._start(self._engine_on(self._places[place]), place)
            elif self._on_core is not None:
                self._start(self._on_core.twin(), place, on_one_core=True)
        return len(lost)

    def _engine_on(self, device: int) -> OnnxEngine:
        settings, on_cpu = self._settings, self._provider == "cpu"
        return OnnxEngine(
            self._file,
            self._provider,
            max(1, settings.threads // len(self._places)),
            settings.max_batch or (_CPU_BATCH if on_cpu else _GPU_BATCH),
            device,
            settings.cuda_graphs,
            settings.load_deadline,
        )

    def _add_to_each_core(self) -> None:
        file, settings = self._file, self._settings
        try:
            engine = OnnxEngine(file, "cpu", 1, settings.max_batch or _CORE_BATCH, load_timeout=settings.load_deadline)
            if stamp(file.path) != file.stamp:
                raise RepositoryError(file.path, "is another file than the one that is served")
        except (RepositoryError, OSError) as error:
            log.error("%s version %d stays on one engine with all cores: %s", file.name, file.version, error)
            return
        self._on_core = engine
        for _ in range(settings.threads):
            self._start(engine.twin(), on_one_core=True)

    def _start(self, engine: OnnxEngine, place: int | None = None, on_one_core: bool = False) -> None:
        self.batcher.start(
            computing_repeats_once(engine.run),
            engine.stop,
            lambda: engine.input_seconds,
            place,
            engine.max_batch,
            on_one_core,
        )


def _places(settings: Settings, provider: str) -> list[int]:
    """Device of each engine."""
    devices = [0] if provider == "cpu" else settings.gpus
    return [device for device in devices for _ in range(settings.instances or 1)]


def _on_first_use(load: Callable[[ModelFile, Statistics], ServedModel], provider: str, settings: Settings) -> Load:
    """Describe a model from its file, and load it when the first request comes."""
    engines = len(_places(settings, provider))

    def describe_only(file: ModelFile) -> ServedModel:
        made: list[ServedModel] = []
        statistics = Statistics()

        def make() -> Queue:
            made[:] = [load(file, statistics)]
            return made[0].queue

        about = describe(file, f"onnxruntime {PROVIDERS[provider]}, loaded on its first request")
        queue = LazyQueue(make, engines, settings.max_queue)
        return ServedModel(file, about, queue, engines, lambda: made[0].revive() if made else 0, statistics)

    return describe_only
