"""The Triton engine: this server is a stateless front, and a Triton server computes, over gRPC.

Both read the same model repository: the metadata of a model come from its file, and Triton computes it. Triton forms the
batches, so the queue here only limits the requests in flight. Behind a load balancer there may be many Tritons.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from metaspec_contract.model import TensorSpec
from metaspec_server.core.batching import MicroBatch
from metaspec_server.core.engine import Description, try_out
from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, EngineUnavailable, QueueFull
from metaspec_server.core.served_model import Load, NotYet, ServedModel
from metaspec_server.core.tensors import Rows, count, gather
from metaspec_server.core.threads import off_loop
from metaspec_server.engines.onnx import describe, refused
from metaspec_server.repository import ModelFile, RepositoryError
from metaspec_server.settings import Settings

__all__ = ["TritonQueue", "is_served", "triton_loader"]

_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # otherwise a new connection shares the back-off of the broken one
]
_TRIAL_TIMEOUT = 300.0  # seconds for a trial batch: Triton may compile the model for its size first


class TritonQueue:
    """Sends rows to a Triton server, a few requests at a time, and joins the answers.

    Args:
        url: gRPC address, host:port.
        name: name of the model there.
        version: version of the model there.
        about: description of the model.
        max_batch: largest number of rows in a request to Triton.
        max_queue: largest number of rows in flight.
        in_flight: largest number of requests in flight.
        observe: function called with every request to Triton.
    """

    def __init__(
        self,
        *,
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
        """Number of rows in flight."""
        return self._waiting

    async def submit(self, rows: Rows, timeout: float | None = None, keys: Sequence[bytes] | None = None) -> Rows:
        """Compute rows, as `MicroBatcher.submit` does. Keys are ignored."""
        size = count(rows)
        if self._closing:
            raise Closed
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
            raise DeadlineExceeded(timeout) from None
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
        """Accept no more requests, wait for the answers in flight, and close the connection."""
        self._closing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        if self._made is not None:
            await self._made.close()

    def revive(self) -> int:
        """Check whether Triton serves the model again; returns 1 if it does."""
        self._reachable = is_served(self._url, self._name, self._version)
        return int(self._reachable)

    async def _ask(self, rows: Rows) -> Rows:
        arrived = time.perf_counter()
        async with self._slots:
            started, failed = time.perf_counter(), True
            try:
                size = count(rows)
                nbytes = 4 * size * sum(spec.size for spec in self._about.inputs)
                inputs = await off_loop(nbytes, _encode, rows, self._about.inputs)
                answer = await self._client().infer(self._name, inputs, model_version=self._version)
                results = {spec.name: answer.as_numpy(spec.name) for spec in self._about.outputs}
                failed = False
                return results
            except InferenceServerException as error:
                if "UNAVAILABLE" in str(error.status()):
                    self._reachable = False
                    self._made = None  # a broken connection keeps failing for seconds after Triton is back
                raise
            finally:
                seconds = time.perf_counter() - started
                self._observe(MicroBatch(size, [started - arrived], seconds, failed))

    def _client(self) -> Any:
        """The connection, made in the event loop that uses it."""
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


def triton_loader(settings: Settings, observe: Callable[[str], Callable[[MicroBatch], None]]) -> Load:
    """Function that loads a version which a Triton server computes.

    Args:
        settings: settings of the server.
        observe: for a model's name, the function that is called with each request to Triton.
    """
    url = settings.triton_url

    def load(file: ModelFile) -> ServedModel:
        about = describe(file, f"Triton at {url}")
        if not is_served(url, file.name, str(file.version)):
            raise NotYet(file.path, f"Triton at {url} does not serve version {file.version} (yet)")
        with tritonclient.grpc.InferenceServerClient(url) as client:
            config = client.get_model_config(file.name, client_timeout=5).config
            max_batch = max(1, config.max_batch_size)
            _warm_up(client, file, about, max_batch)
        queue = TritonQueue(
            url=url,
            name=file.name,
            version=file.version,
            about=about,
            max_batch=max_batch,
            max_queue=settings.max_queue,
            in_flight=settings.triton_in_flight,
            observe=observe(file.name),
        )
        return ServedModel(file, about, queue, 1, queue.revive)

    return load


def _warm_up(client: Any, file: ModelFile, about: Description, max_batch: int) -> None:
    """Try the model on Triton with one row and with the largest batch."""

    def run(rows: Rows) -> Rows:
        inputs = _encode(rows, about.inputs)
        try:
            answer = client.infer(file.name, inputs, str(file.version), client_timeout=_TRIAL_TIMEOUT)
        except InferenceServerException as error:
            gone = any(status in str(error.status()) for status in ("UNAVAILABLE", "DEADLINE_EXCEEDED"))
            kind = NotYet if gone else RepositoryError
            raise kind(file.path, f"Triton fails to run it: {error.message()}") from None
        named = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
        return {spec.name: named[spec.name] for spec in about.outputs if spec.name in named}

    for size in (1, max_batch):
        with refused(file):
            try_out(about.metadata, size, run)


def _encode(rows: Rows, specs: Sequence[TensorSpec]) -> list[Any]:
    """Inputs of a request to Triton, bits unpacked."""
    size = count(rows)
    buffers: Rows = {spec.name: np.empty((size, *spec.shape), spec.dtype) for spec in specs}
    gather([rows], specs, buffers)
    inputs = []
    for name, array in buffers.items():
        tensor = tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs
