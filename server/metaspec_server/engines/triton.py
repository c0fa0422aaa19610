"""A Triton server computes: this server is a stateless front of it, and asks by gRPC.

Both read the same model repository: Triton computes, and what a model says of itself comes from its file. Triton does the
batching, so the queue here only limits what is under way. With a load balancer behind the address it may be many Tritons.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from metaspec_server.core.batching import (
    Closed,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    MicroBatch,
    QueueFull,
)
from metaspec_server.core.registry import NotYet, ServedModel
from metaspec_server.core.tensors import Rows, count, gather
from metaspec_server.core.threads import off_loop
from metaspec_server.engines.onnx import Description, describe
from metaspec_server.ops.metrics import Metrics
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else a new connection shares the back-off of the one that broke
]


class TritonQueue:
    """Sends rows to a Triton server, a few requests at a time, and puts their answers together.

    Args:
        url: gRPC address, host:port.
        name: of the model there.
        version: of the model there.
        about: its tensors.
        max_batch: rows in a request to Triton at most.
        max_queue: rows under way at most.
        in_flight: requests under way at most.
        observe: is told of every request to Triton.
    """

    def __init__(
        self,
        url: str,
        name: str,
        version: int,
        about: Description,
        max_batch: int,
        max_queue: int,
        in_flight: int,
        observe: Callable[[MicroBatch], None],
    ) -> None:
        self._url, self._name, self._version, self._about = url, name, str(version), about
        self._max_batch, self._max_queue, self._observe = max_batch, max_queue, observe
        self._waiting, self._reachable, self._closing = 0, True, False
        self._slots = asyncio.Semaphore(in_flight)
        self._idle = asyncio.Event()
        self._idle.set()
        self._made: tritonclient.grpc.aio.InferenceServerClient | None = None

    @property
    def engines(self) -> int:
        """1 while Triton answers."""
        return int(self._reachable and not self._closing)

    @property
    def waiting(self) -> int:
        """Rows under way."""
        return self._waiting

    async def submit(self, rows: Rows, timeout: float | None = None) -> Rows:
        """Compute rows; as `MicroBatcher.submit`."""
        size = count(rows)
        if self._closing:
            raise Closed("the server is shutting down")
        if self._waiting + size > self._max_queue:
            raise QueueFull(self._waiting, self._max_queue, retry_after=1.0)
        self._waiting += size
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(
                        self._ask({name: array[start : start + self._max_batch] for name, array in rows.items()})
                    )
                    for start in range(0, size, self._max_batch)
                ]
        except TimeoutError:
            raise DeadlineExceeded(f"not finished within {timeout:g} s") from None
        except ExceptionGroup as errors:
            kind = EngineFailure if self._reachable else EngineUnavailable
            raise kind(f"Triton at {self._url}: {errors.exceptions[0]}") from None
        finally:
            self._waiting -= size
            if not self._waiting:
                self._idle.set()
        results = [part.result() for part in parts]
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    async def close(self, timeout: float) -> None:
        """Take no more requests, wait for the answers under way, and hang up."""
        self._closing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        if self._made is not None:
            await self._made.close()

    def revive(self) -> int:
        """Ask whether Triton serves the model again; returns 1 if so."""
        self._reachable = is_served(self._url, self._name, self._version)
        return int(self._reachable)

    async def _ask(self, rows: Rows) -> Rows:
        arrived = time.perf_counter()
        async with self._slots:
            started, failed = time.perf_counter(), True
            try:
                size = count(rows)
                nbytes = 4 * size * sum(spec.size for spec in self._about.inputs)
                inputs = await off_loop(nbytes, self._encode, rows, size)
                answer = await self._client().infer(self._name, inputs, model_version=self._version)
                results = {spec.name: answer.as_numpy(spec.name) for spec in self._about.outputs}
                failed = False
                return results
            except InferenceServerException as error:
                if "UNAVAILABLE" in str(error.status()):
                    self._reachable = False
                    self._made = None  # a broken connection fails at once, for seconds after Triton is back
                raise
            finally:
                seconds = time.perf_counter() - started
                self._observe(MicroBatch(size, [started - arrived], seconds, failed))

    def _encode(self, rows: Rows, size: int) -> list[Any]:
        buffers: Rows = {spec.name: np.empty((size, *spec.shape), spec.dtype) for spec in self._about.inputs}
        gather([rows], self._about.inputs, buffers)
        inputs = []
        for name, array in buffers.items():
            tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return inputs

    def _client(self) -> Any:
        """The connection; it belongs to the event loop that it was made in."""
        if self._made is None:
            self._made = tritonclient.grpc.aio.InferenceServerClient(self._url, channel_args=_CHANNEL)
        return self._made


def is_served(url: str, name: str, version: str) -> bool:
    """Whether the Triton server at an address has a model ready. Blocks."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        try:
            return bool(client.is_model_ready(name, version, client_timeout=5))
        except InferenceServerException:
            return False


def triton_loader(settings: Settings, metrics: Metrics) -> Callable[[ModelFile], ServedModel]:
    """How to serve a model that a Triton server computes."""

    def load(file: ModelFile) -> ServedModel:
        about = describe(file, f"Triton at {settings.triton_url}")
        if not is_served(settings.triton_url, file.name, str(file.version)):
            raise NotYet(file.path, f"Triton at {settings.triton_url} does not serve version {file.version} (yet)")
        with tritonclient.grpc.InferenceServerClient(settings.triton_url) as client:
            config = client.get_model_config(file.name, client_timeout=5).config
        queue = TritonQueue(
            settings.triton_url,
            file.name,
            file.version,
            about,
            max(1, config.max_batch_size),
            settings.max_queue,
            settings.triton_in_flight,
            metrics.observe(file.name),
        )
        return ServedModel(file, about, queue, 1, queue.revive)

    return load
