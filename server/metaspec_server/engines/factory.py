"""From a model file to a model that computes: its engines, its queue, and how dead engines come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from metaspec_server.core.batching import MicroBatcher
from metaspec_server.core.cache import computing_repeats_once
from metaspec_server.core.registry import ServedModel
from metaspec_server.engines.onnx import OnnxEngine, best_provider
from metaspec_server.ops.metrics import Metrics
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings


def onnx_loader(settings: Settings, metrics: Metrics) -> Callable[[ModelFile], ServedModel]:
    """How to load a model into ONNX Runtime in this process: `instances` engines on each GPU, or on the CPU."""
    provider = best_provider() if settings.provider == "auto" else settings.provider
    devices = [0] if provider == "cpu" else settings.gpus
    places = [device for device in devices for _ in range(settings.instances)]
    threads = max(1, settings.threads // len(places))

    def load(file: ModelFile) -> ServedModel:
        def engine_on(device: int) -> OnnxEngine:
            return OnnxEngine(file, provider, threads, settings.max_batch, device, settings.cuda_graphs)

        engines = [engine_on(device) for device in places]
        name = f"{file.name} {file.version}"
        batcher = MicroBatcher(engines[0].max_batch, settings.max_queue, name, metrics.observe(file.name))

        def start(engine: OnnxEngine) -> threading.Thread:
            return batcher.start(computing_repeats_once(engine.run))

        working = [start(engine) for engine in engines]

        def revive() -> int:
            dead = [place for place, thread in enumerate(working) if not thread.is_alive()]
            for place in dead:
                working[place] = start(engine_on(places[place]))
            return len(dead)

        return ServedModel(file, engines[0].about, batcher, len(places), revive)

    return load
