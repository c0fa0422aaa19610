"""The engine factory: from a model file to a served model, with the engine that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.cache import computing_repeats_once
from metaspec_server.core.engine import Engine
from metaspec_server.core.lazy import LazyQueue
from metaspec_server.core.served_model import Load, Queue, ServedModel
from metaspec_server.core.statistics import Statistics
from metaspec_server.engines.onnx import PROVIDERS, OnnxEngine, best_provider, describe
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings

__all__ = ["MissingEngine", "Observe", "engine_factory"]

_CPU_BATCH = 4  # network passes: more than its caches hold make a CPU slower, and take memory
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
    """ONNX Runtime in this process: `instances` engines on each GPU, or on the CPU, behind one micro-batcher."""
    provider = best_provider() if settings.provider == "auto" else settings.provider
    devices = [0] if provider == "cpu" else settings.gpus
    places = [device for device in devices for _ in range(settings.instances)]
    threads = max(1, settings.threads // len(places))
    max_batch = settings.max_batch or (_CPU_BATCH if provider == "cpu" else _GPU_BATCH)

    def load(file: ModelFile, statistics: Statistics | None = None) -> ServedModel:
        statistics = statistics or Statistics()

        def engine_on(device: int) -> OnnxEngine:
            return OnnxEngine(file, provider, threads, max_batch, device, settings.cuda_graphs, settings.load_deadline)

        engines = [engine_on(device) for device in places]
        name = f"{file.name} {file.version}"
        observer = statistics.beside(observe(file.name))
        batcher = MicroBatcher(engines[0].max_batch, settings.max_queue, name, observer, settings.engine_deadline)

        def start(engine: Engine, place: int | None = None) -> None:
            batcher.start(computing_repeats_once(engine.run), engine.stop, lambda: engine.input_seconds, place)

        for engine in engines:
            start(engine)

        def revive() -> int:
            lost = batcher.give_up()
            for place in lost:
                start(engine_on(places[place]), place)
            return len(lost)

        return ServedModel(file, engines[0].about, batcher, len(places), revive, statistics)

    return _on_first_use(load, provider, len(places), settings) if settings.lazy else load


def _on_first_use(
    load: Callable[[ModelFile, Statistics], ServedModel], provider: str, engines: int, settings: Settings
) -> Load:
    """Describe a model from its file, and load it when the first request comes."""

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
