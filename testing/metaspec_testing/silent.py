"""Servers that describe a model and then never answer, over HTTP and gRPC; and one over gRPC whose answers are known."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2 as model_config
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from metaspec_contract.model import METADATA_KEY
from metaspec_testing.scripted import Answer, scripted
from metaspec_testing.small_models import METADATA


@dataclass
class Silent:
    """A server that answers no request for spectra.

    Attributes:
        refusing: number of the request that it refuses, counted from 1.
        url: its address.
        asked: number of requests for spectra so far.
        over: set at the end, so that no thread waits any longer.
    """

    refusing: int
    url: str = ""
    asked: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refuses(self) -> bool:
        """Whether the next request is refused at once; if not, wait for the end."""
        with self._lock:
            self.asked += 1
            number = self.asked
        if number != self.refusing:
            self.over.wait()
        return number == self.refusing


@contextmanager
def silent_server(kind: Literal["http", "grpc"], refusing: int) -> Iterator[Silent]:
    """Run a server that describes a model, and answers no request for spectra but one, which it refuses."""
    silent = Silent(refusing)
    if kind == "http":

        def infer(path: str) -> Answer:
            return (400, {}, b'{"error": "no"}') if silent.refuses() else None

        with scripted() as server:
            silent.url, server.infer = server.url, infer  # type: ignore[method-assign]
            try:
                yield silent
            finally:
                silent.over.set()
        return

    class Never(Means):
        def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
            """Refuse, or wait."""
            silent.refuses()
            context.abort(grpc.StatusCode.INTERNAL, "no")

    with means_server(Never()) as silent.url:
        try:
            yield silent
        finally:
            silent.over.set()


class Means(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Speaks as Triton does; its spectra are the mean of the structure everywhere."""

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Metadata of the server."""
        return messages.ServerMetadataResponse(name="means", version="1", extensions=["model_configuration"])

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Always ready."""
        return messages.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tensors of the model."""
        tensor = messages.ModelMetadataResponse.TensorMetadata
        inputs = [tensor(name="structure", datatype="FP32", shape=[-1, 1, 128, 128])]
        outputs = [tensor(name="spectra", datatype="FP32", shape=[-1, 4, 301])]
        return messages.ModelMetadataResponse(name=request.name, versions=["1"], inputs=inputs, outputs=outputs)

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Description of the model."""
        told = {METADATA_KEY: model_config.ModelParameter(string_value=json.dumps(METADATA))}
        return messages.ModelConfigResponse(config=model_config.ModelConfig(name=request.name, parameters=told))

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Means."""
        mean = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(-1, 128 * 128).mean(axis=1)
        tensor = messages.ModelInferResponse.InferOutputTensor
        return messages.ModelInferResponse(
            id=request.id,
            model_version="1",
            outputs=[tensor(name="spectra", datatype="FP32", shape=[len(mean), 4, 301])],
            raw_output_contents=[np.repeat(mean, 4 * 301).astype("<f4").tobytes()],
        )


@contextmanager
def means_server(servicer: Means | None = None) -> Iterator[str]:
    """Run a gRPC server on a free port, `Means` by default, and give its URL."""
    server = grpc.server(ThreadPoolExecutor(16))
    add_GRPCInferenceServiceServicer_to_server(servicer or Means(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"grpc://localhost:{port}"
    finally:
        server.stop(grace=None).wait()
